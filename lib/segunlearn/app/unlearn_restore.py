"""What a restore brings back, and what has to be forgotten again for it.

A deposit holds the versions that an unlearning replaced. Such a version may also know what was
forgotten later, or what only older versions knew. It is never served as it is then: what is still
forgotten is unlearned from it again and audited, and every version that knows a fulfilled request's
studies is sealed again, under the keys of these requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segunlearn.adapters.deposit import Deposit
from segunlearn.app.audit_choice import choose
from segunlearn.app.audit_files import Audits
from segunlearn.app.audit_targets import Targets
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.unlearn_choice import UnlearnChoice
from segunlearn.app.unlearn_finish import NEVER_TRAINED_ON, ONLY_OUT_OF_SERVICE, Finisher
from segunlearn.app.unlearn_order import UnlearnOrder
from segunlearn.app.unlearn_reach import show_what_was_forgotten
from segunlearn.app.unlearn_replay import replayed_cases
from segunlearn.cases import Case
from segunlearn.errors import ConflictError, NotFoundError
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import highest
from segunlearn.records.versions import VersionInfo, VersionRegistry


@dataclass(frozen=True)
class Restore:
    """What would come back.

    Parameters
    ----------
    requests
        Ids of those that were unlearned together, and so come back together.
    replaced_by
        SHA-256 of the version that was published instead; empty where nothing was sealed.
    original
        The version that knew them; None where none did, or only versions out of service: what is
        in service goes on.
    again
        Requests that stay forgotten, and whose studies the original would show.
    retire
        Versions of the deposits that are sealed again.
    stay
        Ids of the fulfilled requests whose studies these know: theirs are the keys.
    """

    requests: tuple[str, ...]
    replaced_by: str
    original: VersionInfo | None
    again: tuple[ForgetRequest, ...]
    retire: tuple[VersionInfo, ...]
    stay: tuple[str, ...]


def restore_of(
    home: Home, records: Records, registry: VersionRegistry, model: str, request_id: str
) -> Restore:
    """Find what a restore brings back; nothing is changed.

    Parameters
    ----------
    home, records, registry
        Of the installation.
    model
        Name in the registry.
    request_id
        A fulfilled forget request.

    Raises
    ------
    ConflictError
        The request is not fulfilled, or a purge destroyed a key of its deposit.
    NotFoundError
        There is no such request, or no deposit of it.
    """
    finisher = Finisher(home, records)
    request = records.forget_set.get(request_id)
    left = [d for d in finisher.deposits.of_request(request_id) if d.model == model]
    if not (left and request.state == "restored"):  # with another model, and not yet with this one
        fulfilled(records, request_id)
    if _nothing_comes_back(finisher, records, request):
        return Restore((request_id,), "", None, (), (), ())
    deposits = deposits_of(finisher, model, request)
    group = set.intersection(*(set(d.requests) for d in deposits))
    names = dict.fromkeys(e.version for d in deposits for e in d.entries)
    versions = [registry.get(name) for name in names]
    # the newest may be of a restore: it sealed again what came back beside another request
    with_original = (d for d in deposits if original_of(records, registry, d) is not None)
    deposit = next(with_original, deposits[0])
    original = original_of(records, registry, deposit)
    shown = [
        (r, which)
        for r, which in show_what_was_forgotten(Audits(home), records, registry, versions)
        if r.request_id not in group
    ]
    sealed = [(r, which) for r, which in shown if r.state == "fulfilled"]
    return Restore(
        requests=tuple(sorted(group)),
        replaced_by=deposit.replaced_by,
        original=original,
        again=tuple(r for r, which in shown if original is not None and original.version in which),
        retire=tuple(v for v in versions if any(v.version in which for _, which in sealed)),
        stay=tuple(sorted(r.request_id for r, _ in sealed)),
    )


def choose_restore(
    order: UnlearnOrder,
    home: Home,
    records: Records,
    registry: VersionRegistry,
    cases: Sequence[Case],
) -> UnlearnChoice:
    """Choose what is forgotten again beside a restore, and the sets; nothing is changed.

    Parameters
    ----------
    order
        Whose ``restore`` names the request.
    home, records, registry
        Of the installation.
    cases
        Every labelled case at hand, those marked for forgetting too.

    Raises
    ------
    ConflictError
        See :func:`restore_of`; or nothing has to be forgotten again.
    NotFoundError, InvalidInputError, LabelError
        See :func:`restore_of`, ``audit_choice.choose`` and ``unlearn_replay.replayed_cases``.
    """
    found = restore_of(home, records, registry, order.model, order.restore)
    if found.original is None or not found.again:
        raise ConflictError(
            f"forget request {order.restore} can be restored at once: nothing has to be forgotten "
            "again for it (segunlearn restore, or POST /forget/requests/{id}/restore)."
        )
    ids = tuple(r.request_id for r in found.again)
    needed = highest(r.needed if r.state == "fulfilled" else r.reached for r in found.again)
    name = found.original.version
    sets = choose(
        records, registry, cases, candidate=name, original=name,
        targets=Targets(requests=ids, back=found.requests),
        replayed=replayed_cases(order, records, found.original),
    )  # fmt: skip
    return UnlearnChoice(
        original=found.original,
        sets=sets,
        requests=found.again,
        elsewhere=(),
        never=(),
        know=found.retire,
        level=needed,
        needed=needed,
        back=tuple(records.forget_set.get(r) for r in found.requests),
        stay=found.stay,
    )


def fulfilled(records: Records, request_id: str) -> ForgetRequest:
    """Read a request that may be restored or purged.

    Raises
    ------
    NotFoundError
        There is none.
    ConflictError
        It is in another state.
    """
    request = records.forget_set.get(request_id)
    if request.state != "fulfilled":
        raise ConflictError(
            f"forget request {request_id} is {request.state}; only a fulfilled one is restored "
            "or purged."
        )
    return request


def _nothing_comes_back(finisher: Finisher, records: Records, request: ForgetRequest) -> bool:
    """Whether nothing in service knew it and nothing was sealed: a restore is only its word."""
    if finisher.deposits.of_request(request.request_id):
        return False
    ends = [s for s in records.forget_set.history(request.request_id) if s.to_state == "fulfilled"]
    return any(
        step.from_state == "approved" or step.why in (NEVER_TRAINED_ON, ONLY_OUT_OF_SERVICE)
        for step in ends
    )


def deposits_of(finisher: Finisher, model: str, request: ForgetRequest) -> list[Deposit]:
    """Deposits of a request that can be opened, newest first.

    Raises
    ------
    NotFoundError
        There is none.
    ConflictError
        A purge destroyed a key.
    """
    deposits = finisher.deposits
    found = [d for d in deposits.of_request(request.request_id) if d.model == model]
    if not found:
        raise NotFoundError(
            f"forget request {request.request_id} has no deposit of model {model!r}: no "
            "version of this model knew it, or a purge destroyed the one it had with others. There "
            "is nothing to restore."
        )
    openable = [d for d in found if deposits.is_openable(d.deposit_id)]
    if not openable:
        raise ConflictError(
            f"forget request {request.request_id}: a key of its deposit was destroyed, by a "
            "purge of a request that was unlearned with it. It cannot be restored."
        )
    return openable


def original_of(
    records: Records, registry: VersionRegistry, deposit: Deposit
) -> VersionInfo | None:
    """Find the version that was replaced; None where only versions out of service were."""
    run = records.runs.get(deposit.deposit_id)
    if run.parameters["method"] == "none":
        return None
    return registry.get(deposit.entry(str(run.parameters["original"])).version)
