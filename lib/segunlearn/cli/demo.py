"""``segunlearn demo``: the life of a forget request on made-up people, in a few minutes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

from segunlearn.cli.common import progress_bar, stop_on_interrupt
from segunlearn.errors import CancelledError, ConflictError, InvalidInputError

if TYPE_CHECKING:  # they load torch
    from segunlearn.cli.demo_steps import Demonstration, Line, Outcome, Segmented, Size

#: Tells a folder of an earlier demonstration from somebody's own.
_MARK: Final = "SYNTHETIC-DEMONSTRATION.txt"
_OURS: Final = ("data", "home", "masks", "demo.png", "report.html", "refused.html")
_PUBLISHED_METHOD: Final = "erase_to_retain_released"

#: What a run of the demonstration does; None is its usual size. Tests make it smaller.
SIZE: Size | None = None


def demo(
    home: Annotated[
        Path, typer.Option(help="Folder for what the demonstration makes; a new one, or its own.")
    ] = Path(".demo"),
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Also keep images, masks, models and records to look around."),
    ] = False,
) -> None:
    """Show the life of a forget request on synthetic people, in a few minutes and offline.

    Trains, segments, hides, unlearns, audits, restores and purges by the product's own code, and
    ends with a report and a picture. Nothing of it touches another home.
    """
    folder = home.expanduser().resolve()
    _prepare(folder)
    try:
        with stop_on_interrupt() as interrupted:
            _Story(folder, interrupted, keep=keep).tell()
    finally:
        if not keep:
            for name in ("data", "home", "masks"):
                shutil.rmtree(folder / name, ignore_errors=True)


def _prepare(folder: Path) -> None:
    """Make the folder, or clear it of an earlier demonstration; never of anything else."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder}: is no folder. Name another one by --home.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _MARK).is_file():
            raise ConflictError(
                f"{folder}: holds something else than a demonstration. Name a new folder by --home."
            )
        for name in _OURS:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text(
        "Made by 'segunlearn demo' from people who do not exist; the next demonstration in this "
        "folder replaces it.\n",
        encoding="utf-8",
    )


class _Story:
    """Does the steps and tells them."""

    def __init__(self, folder: Path, stopped: Callable[[], bool], *, keep: bool) -> None:
        self._folder, self._stopped, self._keep = folder, stopped, keep
        self._out = Console(highlight=False, soft_wrap=False)
        self._number = 0

    def tell(self) -> None:
        """Tell the story from the first image to the picture."""
        import torch

        from segunlearn.cli.demo_steps import Demonstration, Size

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # equal figures on every machine; the network is tiny
        try:
            self._tell(Demonstration(self._folder, SIZE or Size(), _no_bar, self._stopped))
        finally:
            torch.set_num_threads(threads)

    def _tell(self, work: Demonstration) -> None:
        size = work.size
        count = size.forget
        begun = time.monotonic()
        self._say(
            "[bold]SegUnlearn: the life of a forget request.[/] Everything happens in "
            f"{escape(str(self._folder))}, on synthetic people, without network."
        )
        with self._step(work, "People and a model"):
            work.make_people()
            first = work.train()
        self._say(
            f"{size.forget + size.retain} people were trained on, {size.unseen} others never. In "
            "each, an organ is easy to see, but the outline that was drawn follows a habit of its "
            "own that no image shows: only a model that [italic]remembers[/] a person can draw it."
        )
        with self._step(work, "The old model segments the six that will be forgotten", long=False):
            old = work.segment("old-model")
        self._say(
            f"{first.version} draws everyone's own outline, mean Dice {old.dice:.2f}. It did not "
            "find that in the images. It knows these people by heart."
        )
        with self._step(work, f"{_word(count)} people withdraw their consent", long=False):
            ids = work.mark()
            plan = work.plan(ids)
        self._say(
            f"{count} requests are marked and approved. From this moment no training uses these "
            "people; the model in service still knows them. What could be done:"
        )
        for line in plan:
            self._out.print(f"  {line}", style="dim", markup=False)

        with self._step(work, "Hide: at once, while more is being computed"):
            hidden = work.unlearn(ids, "calibrated", "hidden", **size.hide)
        drawn = [old]
        if hidden.outcome == "hidden":
            drawn.append(work.segment("hidden"))
            self._say(
                f"{hidden.version} serves now. Its outputs treat the {count} people like strangers "
                f"(mean Dice {drawn[-1].dice:.2f}), but its weights still hold them. That is "
                "[bold]hidden[/]; it is never called erasure, and the requests stay open."
            )
        else:
            ids = self._unexpected(work, hidden, ids)
        with self._step(work, "A published method, and what the audit thinks of it"):
            published = work.unlearn(ids, _PUBLISHED_METHOD, "unlearned", **size.published)
        self._compare(published)
        if published.outcome != "refused":
            ids = self._unexpected(work, published, ids)
        with self._step(work, "Unlearn"):
            done = self._until_it_passes(work, ids)
        drawn.append(work.segment("unlearned"))
        self._say(
            f"{done.version} serves now, made by [bold]{done.method}[/], and the audit found the "
            f"level [bold]{done.reached}[/]: within the demonstration's wider bars, attackers find "
            f"no more in it than in a model that never saw the {count} people. They get mean Dice "
            f"{drawn[-1].dice:.2f}: a guess, not their habit. The old weights are sealed."
        )
        self._copy(work, done, published)

        with self._step(work, "Restore: a consent is given again", long=False):
            version, same = work.restore(ids[0])
        bits = "bit for bit" if same else "BUT NOT WITH THE SAME BYTES"
        self._say(
            f"{version} is back {bits}, opened from its sealed deposit by the requests' keys."
        )
        with self._step(work, "Withdrawn again, unlearned again, and purged"):
            again = work.mark()
            last = self._until_it_passes(work, again, [done.method])
            destroyed = work.purge(again)
            left = work.left_open()
        self._say(
            f"{last.version} serves. The keys are destroyed and the weights of "
            f"{', '.join(destroyed)} are gone: nobody can restore them any more. This, and only "
            "this, is [bold]erasure[/]."
        )
        self._say(
            "Looked for keys, deposits and old weights in the whole home: "
            + ("none can be opened." if not left else f"STILL OPEN: {', '.join(left)}")
        )
        lines = (
            replace(hidden.before, name="original", verdict="knows them"),
            replace(hidden.after, name="hidden"),
            replace(published.after, name="published method"),
            replace(done.after, name=done.reached),
            replace(done.reference, name="never saw them"),
        )
        self._table(lines)
        self._picture(work, drawn, lines)
        self._end(time.monotonic() - begun)

    def _until_it_passes(
        self, work: Demonstration, ids: list[str], only: list[str] | None = None
    ) -> Outcome:
        """Try the methods, and train again when none of them passes the audit."""
        for method, settings in work.size.attempts:
            if only is not None and method not in only:
                continue
            found = work.unlearn(ids, method, "unlearned", **settings)
            if found.outcome == "published":
                return found
            self._not_passed(found)
        found = work.unlearn(ids, "retrain", "")
        if found.outcome != "published":
            self._not_passed(found)
            shutil.copyfile(work.report_of(found.audit_id), self._folder / "report.html")
            raise ConflictError(
                "the audit did not pass a model trained without the people, so the demonstration "
                "ends here; its report says why."
            )
        return found

    def _compare(self, published: Outcome) -> None:
        before, after, never = published.before, published.after, published.reference
        name = published.method.replace("_", " ")
        self._say(
            f"[bold]{name}[/]: the outputs look forgotten, Dice of the forgotten people "
            f"{before.forgotten:.2f} before and {after.forgotten:.2f} after. Then an attacker "
            f"fine-tunes on some of them, and the [italic]others[/] come back to "
            f"{after.relearned:.2f}; in a model that never saw them, to {never.relearned:.2f}."
        )
        if published.outcome == "refused":
            self._say(
                "[bold red]The audit refuses it.[/] Nothing changed: the version in service, the "
                "deposits and the people's requests are as they were before."
            )
            self._reasons(published)

    def _unexpected(self, work: Demonstration, found: Outcome, ids: list[str]) -> list[str]:
        """Go on where a figure fell on the other side of its bar; returns the requests then."""
        if found.outcome == "refused":
            self._not_passed(found)
            return ids
        self._say(
            f"With so few people the audit passed [bold]{found.method}[/] here, which it should "
            "not: the bars of this demonstration are wide. The old model is brought back and the "
            "people are marked again, to go on."
        )
        work.restore(ids[0])
        return work.mark()

    def _not_passed(self, found: Outcome) -> None:
        self._say(
            f"[bold]{found.method}[/]: the audit did not pass it here, with so few people on so "
            "small a network. Nothing changed."
        )
        self._reasons(found)

    def _reasons(self, found: Outcome) -> None:
        for reason in found.reasons:
            self._out.print(f"  {reason}", style="dim", markup=False)

    def _copy(self, work: Demonstration, done: Outcome, published: Outcome) -> None:
        """Keep the two reports beside the picture, where they are found."""
        for name, outcome in (("report.html", done), ("refused.html", published)):
            shutil.copyfile(work.report_of(outcome.audit_id), self._folder / name)

    def _table(self, lines: tuple[Line, ...]) -> None:
        table = Table(
            title="What attackers find (Dice, but for the AUC)",
            title_justify="left",
            title_style="bold",
        )
        table.add_column("model")
        for head in ("forgotten", "unseen", "AUC", "others", "relearned", "audit"):
            table.add_column(head, justify="left" if head == "audit" else "right")
        for line in lines:
            dice = (line.forgotten, line.unseen)
            shown = (*dice, line.membership, line.others, line.relearned)
            table.add_row(
                line.name,
                *(f"{v:.2f}" for v in shown),
                line.verdict,
            )
        self._out.print()
        self._out.print(table)
        self._say(
            "[dim]AUC: of guessing who was trained on; 0.5 is pure chance, 0 and 1 give everybody "
            "away. Others, relearned: the forgotten people that an attacker does not have, before "
            "and after fine-tuning on the rest of them; both should be what a model gives that "
            "never saw them.[/]"
        )

    def _picture(
        self, work: Demonstration, drawn: list[Segmented], lines: tuple[Line, ...]
    ) -> None:
        import numpy as np

        from segunlearn.cli.demo_picture import draw
        from segunlearn.cli.demo_steps import typical
        from segunlearn.volumes import read_volume

        who = typical(drawn)
        person = work.crowd.forget[who]
        words = [
            ("Before", "the old model draws it: it knows\nthis person by heart"),
            ("Hidden", "does not show it any more;\nthe weights still hold it"),
            (
                lines[3].name.capitalize(),
                "guesses, as for a stranger;\nthe audit passed it",
            ),
        ]
        if len(drawn) == 2:  # the audit let nothing be hidden
            del words[1]
        outlines = [
            ("One of the six", "white: the outline that was drawn.\nIts habit cannot be seen"),
            *words,
        ]
        masks = [work.label(person), *(d.masks[who] for d in drawn)]
        image = np.asarray(read_volume(person.image).array[..., 0], np.float32)
        panels = [(*text, mask) for text, mask in zip(outlines, masks, strict=True)]
        draw(self._folder / "demo.png", image, panels, lines)

    def _end(self, seconds: float) -> None:
        self._out.print(Rule())
        self._say(
            f"Done in {seconds / 60:.1f} minutes. [bold]What this does not prove:[/] the people "
            "are synthetic, the network is tiny, and with so few people the audit's bars are set "
            "wider than the product's. An audit measures; a stronger attack may find more. Copies "
            "of the old model that left the house are not covered by any purge."
        )
        for what, name in (
            ("audit report", "report.html"),
            ("audit of the refused method", "refused.html"),
            ("picture", "demo.png"),
        ):
            self._out.print(f"{what}: {self._folder / name}", soft_wrap=True, markup=False)
        if self._keep:
            home = self._folder / "home"
            self._out.print(
                f"to look around: segunlearn models --model demo --home {home}", soft_wrap=True
            )
        else:
            self._say("Images, models and records of the demonstration are removed (--keep).")

    def _say(self, words: str) -> None:
        self._out.print(words)

    @contextmanager
    def _step(self, work: Demonstration, title: str, *, long: bool = True) -> Iterator[None]:
        """Head a step, and show a bar while it works if it takes long."""
        if self._stopped():
            raise CancelledError("the demonstration was stopped; nothing of it is left to do.")
        self._number += 1
        self._out.print()
        self._out.print(Rule(f"[bold]{self._number}  {title}[/]", align="left"))
        with progress_bar(quiet=not long) as bar:
            work.bar = bar
            yield
        work.bar = _no_bar


def _no_bar(_what: str, _done: int, _total: int) -> None:
    """Show nothing."""


def _word(number: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
    return words[number] if number < len(words) else str(number)
