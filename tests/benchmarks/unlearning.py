"""Every unlearning method on real people, audited against models trained without them.

``python tests/benchmarks/unlearning.py --data DIR --seeds 3`` with the folder of the hippocampus
crops (Medical Segmentation Decathlon task 4, CC BY-SA 4.0; Simpson 2019, arXiv 1902.09063) or of
CHASE_DB1 (CC BY 4.0; Fraz 2012). Every seed has its own split by person and its own original. For
each forget set two models are trained in full without it, and every method, a short run from
scratch and models with a known fault are audited against them.

What is done is kept under ``--work``: a stopped benchmark goes on. ``--quick`` takes a coarse grid
and one forget set, and writes nothing; the exit code is 1 when the audit itself fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import unlearning_table as table
from report import ROOT, commit
from torch import nn
from unlearning_task import Task, load, of
from unlearning_tuning import settings_of

sys.path.insert(0, str(ROOT / "tests"))
import unlearning_culprits as culprits
from segunlearn.audit.distillation import DistillationSettings
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.policy import Policy
from segunlearn.audit.report import write_report
from segunlearn.audit.run import AuditResult, Provenance, run_audit
from segunlearn.audit.scores import person_means, score
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AttackName, AuditSettings
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import InvalidInputError
from segunlearn.networks import build_network, load_weights, save_weights
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning import METHODS, UnlearningSets, checked, unlearn
from segunlearn.unlearning.loop import mean_dice
from segunlearn.unlearning.retrain import RetrainSettings, retrain

#: Of the early-stopped reference: epochs between looks at C, and looks without a better Dice.
LOOK_EVERY, PATIENCE = 4, 3
POLICY = Policy()
#: The pseudonyms of a benchmark protect nobody and must agree between runs.
PSEUDONYMS = Pseudonyms(bytes(32))


@dataclass
class Made:
    """A network and what it cost."""

    network: nn.Module
    cpu_seconds: float


class Bench:
    """One seed: its split, its original, its forget sets."""

    def __init__(
        self,
        task: Task,
        seed: int,
        work: Path,
        methods: list[str],
        only: list[str],
        say: Callable[[str], None],
    ) -> None:
        self.task, self.seed, self.methods, self.only, self.say = task, seed, methods, only, say
        self.dir = work / f"seed-{seed}"
        self.split = task.split(seed)

    def kept(
        self,
        folder: Path,
        name: str,
        make: Callable[[], nn.Module],
        settings: dict[str, Any] | None = None,
    ) -> Made:
        """Make a network, or load it if an earlier run did with the same settings."""
        weights, facts = folder / f"{name}.safetensors", folder / f"{name}.json"
        known = read_json(facts) if facts.is_file() else None
        if known is not None and known.get("settings") != settings:
            (folder / "audits" / f"{name}.json").unlink(missing_ok=True)
            known = None
        if known is not None:
            network = load_weights(weights, self.task.config, known["sha256"])
            return Made(network.eval(), known["cpu_seconds"])
        started = time.process_time()
        network = make()
        cost = time.process_time() - started
        folder.mkdir(parents=True, exist_ok=True)
        digest = save_weights(network, weights)
        write_json_durably(facts, {"sha256": digest, "cpu_seconds": cost, "settings": settings})
        self.say(f"{folder.name}: {name}, {cost:.0f} CPU s")
        return Made(network, cost)

    def trained(self, folder: Path, name: str, on: Any, epochs: int, seed: int) -> Made:
        """Train from scratch on some studies."""
        settings = RetrainSettings(epochs=epochs, seed=self.seed * 1000 + seed)
        sets = UnlearningSets(self.task.config, retain=on)
        start = build_network(self.task.config, 0)
        return self.kept(folder, name, lambda: retrain(start, sets, settings))

    def run(self) -> None:
        """Train the original and run every forget set."""
        task, trained = self.task, self.split["trained"]
        self.original = self.trained(self.dir, "original", trained, task.epochs, 0)
        order = list(dict.fromkeys(s.person for s in trained))
        sets = {name: order[:count] for name, count in task.forget.items()}
        if task.hard:
            sets["hard"] = self.most_memorised(order)[: task.hard]
        # the sets that say most come first: a benchmark may be stopped
        for name in sorted(sets, key=lambda n: (n not in task.thorough, -len(sets[n]))):
            if self.only and name not in self.only:
                continue
            ForgetSet(self, name, sets[name]).run()

    def most_memorised(self, persons: list[str]) -> list[str]:
        """Persons by how much better the original is on them than a short run without them."""
        kept = self.dir / "memorised.json"
        if not kept.is_file():
            lead: dict[str, float] = {}
            for half in (0, 1):
                without, inside = persons[half::2], persons[1 - half :: 2]
                short = self.trained(
                    self.dir,
                    f"half-{half}",
                    of(self.split["trained"], inside),
                    2 * self.task.short_epochs,
                    10 + half,
                )
                studies = of(self.split["trained"], without)
                now, never = (
                    person_means(score(n.network, studies, self.task.config))
                    for n in (self.original, short)
                )
                lead |= {p: now[p] - never[p] for p in without}
            write_json_durably(kept, sorted(lead, key=lambda p: -lead[p]))
        return list(read_json(kept))


class ForgetSet:
    """One forget set of one seed: references, methods, audits."""

    def __init__(self, bench: Bench, name: str, persons: list[str]) -> None:
        self.bench, self.name, self.task = bench, name, bench.task
        self.dir = bench.dir / name.replace(" %", "-percent").replace(" ", "-")
        trained = bench.split["trained"]
        rest = [p for p in dict.fromkeys(s.person for s in trained) if p not in persons]
        self.people = len(persons)
        self.sets = UnlearningSets(
            self.task.config, of(trained, persons), of(trained, rest), bench.split["calibration"]
        )
        self.audit_sets = AuditSets(
            self.task.config,
            self.sets.forget,
            self.sets.retain,
            self.sets.calibration,
            bench.split["test"],
        )

    def run(self) -> None:
        """Make and audit everything that is not there yet."""
        self.references = [self.full_with_early_stop()]
        for i in range(2, self.task.references + 1):
            self.references.append(
                self.bench.trained(
                    self.dir, f"full-{i}", self.sets.retain, self.task.epochs, 10 + i
                )
            )
        self.audited("original", self.bench.original, {})
        early = self.bench.kept(self.dir, "early-stopped", self.never)
        thorough = self.name in self.task.thorough
        self.audited("early-stopped", early, {"retain": len(self.sets.retain)}, distil=thorough)
        self.left_out()
        short = self.bench.trained(self.dir, "short", self.sets.retain, self.task.short_epochs, 13)
        self.audited("short", short, {"retain": len(self.sets.retain)})
        for name in self.bench.methods:
            method = METHODS[name]
            settings = settings_of(name, self.task.steps)
            try:
                checked(name, self.bench.original.network, self.sets, settings)
            except InvalidInputError as error:
                self.bench.say(f"{self.dir.name}: {name} does not run: {error}")
                continue
            made = self.bench.kept(
                self.dir,
                name,
                partial(self.unlearned, name, settings),
                asdict(settings),
            )
            reads = method.reads_with(settings)
            read = {r: len(method.read_of(r, getattr(self.sets, r), settings)) for r in reads}
            self.audited(name, made, read)
        if thorough and self.name != "hard":
            self.faulty()

    def unlearned(self, name: str, settings: Any) -> nn.Module:
        """Run a method."""
        return unlearn(name, self.bench.original.network, self.sets, settings).network

    def full_with_early_stop(self) -> Made:
        """Train in full, keeping the weights at which a patient watcher of C would have stopped."""
        path = self.dir / "early-stopped.json"
        best: dict[str, Any] = {"dice": -1.0, "looks": 0, "stopped": None}
        spent = [0.0]
        every = max(1, LOOK_EVERY * len(self.sets.retain) // 3)
        started = time.process_time()

        def watch(step: int, network: nn.Module) -> None:
            if step % every or best["looks"] >= PATIENCE:
                return
            before = time.process_time()
            dice = mean_dice(network, self.sets.calibration, self.task.config)
            if dice > best["dice"]:
                state = {k: v.clone() for k, v in network.state_dict().items()}
                best.update(dice=dice, looks=0, state=state, step=step)
            else:
                best["looks"] += 1
            spent[0] += time.process_time() - before
            best["cpu"] = time.process_time() - started

        def make() -> nn.Module:
            settings = RetrainSettings(epochs=self.task.epochs, seed=self.bench.seed * 1000 + 11)
            start = build_network(self.task.config, 0)
            only = UnlearningSets(self.task.config, retain=self.sets.retain)
            return retrain(start, only, settings, watch=watch)

        made = self.bench.kept(self.dir, "full-1", make)
        if "state" in best:
            stopped = build_network(self.task.config, 0)
            stopped.load_state_dict(best["state"])
            digest = save_weights(stopped, path.with_suffix(".safetensors"))
            write_json_durably(path, {"sha256": digest, "cpu_seconds": best["cpu"]})
            facts = read_json(self.dir / "full-1.json")
            made.cpu_seconds = facts["cpu_seconds"] - spent[0]  # the looks at C are not its cost
            write_json_durably(self.dir / "full-1.json", facts | {"cpu_seconds": made.cpu_seconds})
        return made

    @staticmethod
    def never() -> nn.Module:
        """Stand for a file that the full training writes."""
        raise RuntimeError("the early-stopped weights are missing; remove the folder of this set")

    def settings(self, *, distil: bool) -> AuditSettings:
        """What is measured on this set."""
        relearning = self.task.relearning(self.name, self.people)
        attacks: list[AttackName] = ["relearning"] if relearning else []
        settings = AuditSettings(
            policy=POLICY,
            attacks=(*attacks, "distillation", "artefacts") if distil else tuple(attacks),
            distillation=DistillationSettings(steps=100),
        )
        return replace(settings, relearning=relearning) if relearning else settings

    def audited(self, name: str, made: Made, read: dict[str, int], *, distil: bool = False) -> None:
        """Audit a candidate; distil it only if nothing else refuses it."""
        path = self.dir / "audits" / f"{name}.json"
        if path.is_file():
            return
        result = self.audit(name, made, read, distil=distil)
        thorough = self.name in self.task.thorough
        if thorough and not distil and result.verdict.outcome != "refused":
            result = self.audit(name, made, read, distil=True)
        path.parent.mkdir(exist_ok=True)
        write_json_durably(path, {**result.to_json(), "commit": commit()})
        write_report(path.with_suffix(".html"), result.to_json())
        failed = [f.name for f in result.findings if f.outcome == "fail"]
        self.bench.say(
            f"{self.dir.name}: {name} {result.verdict.outcome}"
            + (f" ({', '.join(failed)})" if failed else "")
        )

    def audit(self, name: str, made: Made, read: dict[str, int], *, distil: bool) -> AuditResult:
        """One audit; the figures of original and references are kept between them."""
        return run_audit(
            made.network,
            self.bench.original.network,
            [r.network for r in self.references],
            self.audit_sets,
            self.settings(distil=distil),
            run_dir=self.dir / "measured",
            pseudonyms=PSEUDONYMS,
            provenance=Provenance(name, False, {}, made.cpu_seconds, read),
        )

    def left_out(self) -> None:
        """Judge each full reference against the others, by the figures of the last audit."""
        path = self.dir / "audits" / "left-out.json"
        if path.is_file():
            return
        data = read_json(self.dir / "measured" / "audit.json")
        figures = {k: ModelFigures.from_json(v) for k, v in data["figures"].items()}
        names = [n for n in figures if n.startswith("reference-")]
        left_out = []
        for i, mine in enumerate(names):
            others = {n: figures[n].to_json() for n in names if n != mine}
            audit = {
                "figures": {
                    "candidate": figures[mine].to_json(),
                    "original": figures["original"].to_json(),
                    **others,
                },
                "settings": data["settings"],
                "provenance": {"cpu_seconds": self.references[i].cpu_seconds},
                "commit": commit(),
            }
            left_out.append(audit)
            outcome = table.judged(audit)["verdict"]["outcome"]
            self.bench.say(f"{self.dir.name}: left-out retrained {outcome}")
        write_json_durably(path, left_out)

    def faulty(self) -> None:
        """Models with a known fault, at size: each must be refused."""
        original, retrained = self.bench.original.network, self.references[1].network
        for name, make in {
            "over-forgotten": lambda: culprits.over_forgotten(retrained, self.sets),
            "damaged": lambda: culprits.damaged(retrained, self.sets),
            "suppressed by LoRA": lambda: culprits.suppressed_by_lora(original, self.sets),
            "last layer": lambda: culprits.suppressed_in_the_last_layer(original, self.sets),
        }.items():
            self.audited(name, self.bench.kept(self.dir, name, make), {})


def main() -> int:
    """Run what is missing, draw up the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, help="run one seed and stop, for a second core")
    parser.add_argument("--work", type=Path, help="kept between runs; default .bench/<task>")
    every = [name for name, method in METHODS.items() if not method.exact]
    parser.add_argument("--methods", nargs="+", choices=every, default=every, metavar="METHOD")
    parser.add_argument("--sets", nargs="+", default=[], help="forget sets; default all")
    parser.add_argument("--summary", action="store_true", help="only from what is there")
    parser.add_argument("--quick", action="store_true", help="coarse, one set, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load(options.data, quick=options.quick)
    work = options.work or ROOT / ".bench" / (task.name + ("_quick" if options.quick else ""))
    seeds = [0] if options.quick else list(range(options.seeds))
    started = time.monotonic()
    for seed in seeds if options.only_seed is None else [options.only_seed]:

        def say(text: str, seed: int = seed) -> None:
            minutes = (time.monotonic() - started) / 60
            sys.stdout.write(f"[{minutes:5.1f} min] seed {seed} of {len(seeds)} · {text}\n")
            sys.stdout.flush()

        if not options.summary:
            Bench(task, seed, work, options.methods, options.sets, say).run()
    if options.only_seed is not None:
        return 0
    rows = table.collect(work, seeds)
    if not options.quick:
        rows = table.with_earlier(rows, task.name, seeds)
    bars = table.bars(rows, task.thorough)
    sys.stdout.write(table.text(rows) + "\n")
    if options.quick:
        for row in bars:
            sys.stdout.write(f"{'holds' if row['holds'] else 'FAILS'} {row['name']}\n")
        return 0 if all(row["holds"] for row in bars if row["of_the_audit"]) else 1
    for shown in rows:
        bars += table.bars_of_methods(rows, shown)
    done = sorted({e["seed"] for c in rows.values() for es in c.values() for e in es})
    table.finish(task.name, rows, bars, done, os.environ.get("OMP_NUM_THREADS", "1"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
