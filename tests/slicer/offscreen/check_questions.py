"""A question is about what is selected, on the server that was asked, and names it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from check_reconnect import TASK, turns
from check_states import listed
from check_unlearning import select
from fake import fake_server, request

from SegUnlearnLib import texts

A, B = request(0, "fulfilled"), request(3, "fulfilled")
PLAN = {
    "requests": [], "original": "v1", "studies": 1, "people": 1, "level": "unlearned", "lines": [],
}  # fmt: skip


def purge_of(one: dict[str, Any]) -> str:
    return f"/forget/requests/{one['request_id']}/purge"


def name(one: dict[str, Any]) -> str:
    """As the table has it."""
    return f"Study {texts.short(one['target']['id'], 22)}"


def after(wait: threading.Event, answer: Any) -> Callable[[Any], Any]:
    return lambda _: wait.wait(30) and answer


def destroyed(version: str) -> dict[str, Any]:
    return {"destroyed": [version], "requests": []}


def test_a_purge_is_asked_about_what_is_selected_alone(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, A, B)
    late = threading.Event()
    fake.answers[f"GET {purge_of(A)}"] = after(late, destroyed("v0001"))
    fake.answers[f"GET {purge_of(B)}"] = destroyed("v0002")
    asked, said = panel.widget.forget.confirm, panel.find("requestCount")
    select(panel, A["request_id"])
    panel.click("purgeButton")
    assert "Asking the server" in said.text()
    assert name(A) in said.text()
    loop.until(lambda: fake.asked("GET", purge_of(A)))
    select(panel, B["request_id"])
    assert "Asking the server" not in said.text()
    late.set()
    turns(loop)
    assert not asked.is_asking()
    assert panel.banner() == ""
    panel.click("purgeButton")
    loop.until(asked.is_asking)
    assert asked.text().startswith(f"Purge {name(B)}?")
    assert "v0002" in asked.text()
    assert "Asking the server" not in said.text()
    panel.logic.forget_set.load()  # what is selected stays selected
    loop.until(lambda: not panel.logic.forget_set.loading)
    turns(loop)
    assert asked.is_asking()
    select(panel, A["request_id"])
    assert not asked.is_asking()


def test_only_the_newest_question_is_answered(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, A, {**B, "state": "approved"})
    late = threading.Event()
    fake.answers[f"GET {purge_of(A)}"] = after(late, destroyed("v0001"))
    fake.answers["/unlearning/plan"] = PLAN
    asked = panel.widget.forget.confirm
    select(panel, A["request_id"])
    panel.click("purgeButton")
    loop.until(lambda: fake.asked("GET", purge_of(A)))
    fake.answers[f"GET {purge_of(A)}"] = destroyed("v0009")
    panel.click("purgeButton")
    loop.until(asked.is_asking)
    late.set()
    turns(loop)
    assert "v0009" in asked.text()
    select(panel, B["request_id"])
    panel.click("unlearnButton")
    panel.click("withdrawButton")
    turns(loop)
    assert asked.text().startswith("Withdraw 1 request?")  # asked last


def test_an_unlearning_is_asked_about_what_is_selected(panel: Any, fake: Any, loop: Any) -> None:
    a, b = request(0, "approved"), request(3, "approved")
    listed(panel, fake, loop, a, b)
    late = threading.Event()
    fake.answers["/unlearning/plan"] = after(late, PLAN)
    asked = panel.widget.forget.confirm
    select(panel, a["request_id"])
    panel.click("unlearnButton")
    assert "Asking the server" in panel.find("requestCount").text()
    loop.until(lambda: fake.asked("GET", "/unlearning/plan"))
    select(panel, b["request_id"])
    late.set()
    turns(loop)
    assert not asked.is_asking()
    panel.click("unlearnButton")
    loop.until(asked.is_asking)
    assert asked.text().startswith(f"{name(b)}: unlearn 1 study of 1 person")
    panel.widget.forget.table.widget.selectAll()
    assert not asked.is_asking()
    panel.click("unlearnButton")
    loop.until(asked.is_asking)
    assert asked.text().startswith("2 requests: unlearn")
    panel.widget.forget.table.widget.clearSelection()
    panel.click("unlearnButton")
    loop.until(asked.is_asking)
    assert asked.text().startswith("All that wait: unlearn")


def test_another_server_does_not_answer_for_the_first(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, A)
    late = threading.Event()
    fake.answers[f"GET {purge_of(A)}"] = after(late, destroyed("v0001"))
    select(panel, A["request_id"])
    panel.click("purgeButton")
    loop.until(lambda: fake.asked("GET", purge_of(A)))
    with fake_server() as other:
        other.answers["/forget/requests"] = {"total": 1, "requests": [A]}
        panel.connect(other.url)
        late.set()
        turns(loop)
        assert not panel.widget.forget.confirm.is_asking()
        assert "Asking the server" not in panel.find("requestCount").text()


def test_a_server_may_take_its_time_to_look(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, A, request(3, "approved"))
    fake.answers[f"GET {purge_of(A)}"] = destroyed("v0001")
    fake.answers["/unlearning/plan"] = PLAN
    transport, given = panel.logic.api.transport, {}
    send = transport.send

    def spy(method: str, path: str, done: Any, **options: Any) -> Any:
        given[path] = options["timeout"]
        return send(method, path, done, **options)

    transport.send = spy
    select(panel, A["request_id"])
    panel.click("purgeButton")
    loop.until(panel.widget.forget.confirm.is_asking)
    panel.widget.forget.table.widget.clearSelection()
    panel.click("unlearnButton")
    loop.until(panel.widget.forget.confirm.is_asking)
    assert given[purge_of(A)] > 60
    assert given["/unlearning/plan"] > 60


def test_a_refusal_is_told_and_the_next_question_asked(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, A)
    fake.answers[f"GET {purge_of(A)}"] = (409, {"detail": "v0001 still knows it"})
    select(panel, A["request_id"])
    panel.click("purgeButton")
    loop.until(panel.banner)
    assert "V0001 still knows it" in panel.banner()
    assert "Asking the server" not in panel.find("requestCount").text()


def test_a_sign_in_that_is_over_asks_for_a_new_one(panel: Any, fake: Any, loop: Any) -> None:
    listed(panel, fake, loop, A)
    fake.answers[f"GET {purge_of(A)}"] = (401, {"detail": "expired"})
    select(panel, A["request_id"])
    panel.click("purgeButton")
    loop.until(lambda: panel.find("loginToken").isVisible())
    assert "has expired" in panel.banner()


def test_a_restore_names_its_study_and_a_run_for_it_is_asked_of_nobody_else(
    panel: Any, fake: Any, loop: Any
) -> None:
    listed(panel, fake, loop, A, B)
    late, path = threading.Event(), f"POST /forget/requests/{A['request_id']}/restore"
    fake.answers[path] = after(late, (409, {"detail": "POST /train/unlearn with it as restore"}))
    fake.answers["POST /train/unlearn"] = TASK
    fake.answers["GET /train/"] = [TASK]
    asked = panel.widget.forget.confirm
    for stays in (False, True):
        select(panel, A["request_id"])
        panel.click("restoreButton")
        assert asked.text().startswith(f"Restore {name(A)}?")
        panel.confirm(asked, "restore")
        if stays:
            loop.until(asked.is_asking)
            assert name(A) in asked.text()
        else:
            select(panel, B["request_id"])
            late.set()
            loop.until(panel.banner)
            assert name(A) in panel.banner()
            assert not asked.is_asking()


def test_what_only_another_model_knows_is_not_counted(panel: Any, fake: Any, loop: Any) -> None:
    """It is listed, and nothing is done about it."""
    listed(panel, fake, loop, request(0, "approved"), request(3, "working"))
    fake.answers["/unlearning/plan"] = {
        "requests": [{"id": "0", "what": "no version was taught it: fulfilled at once"},
                     {"id": "1", "what": "only unet knows it: unlearn it there"},
                     {"id": "2", "what": "only unet knows it: unlearn it there"}],
        "original": "", "studies": 0, "people": 0, "level": "unlearned", "lines": ["x"],
        "others": [{"model": "unet", "requests": ["1", "2"], "possible": False,
                    "what": "2 requests stay open after this: unet cannot be unlearned."}],
    }  # fmt: skip
    panel.click("unlearnButton")
    asked = panel.widget.forget.confirm
    loop.until(asked.is_asking)
    assert asked.text().splitlines() == [
        "All that wait: no new weights are made. Go on?",
        "1 request: no version was taught it: fulfilled at once.",
        "2 requests: only unet knows it: unlearn it there.",
        "2 requests stay open after this: unet cannot be unlearned.",
    ]
    fake.answers["POST /train/unlearn"] = TASK
    fake.answers["GET /train/"] = [TASK]
    panel.confirm(asked, "unlearn")
    loop.until(lambda: fake.asked("POST", "/train/unlearn"))
