"""The panel's state in node: what it asks a server, and what it makes of the answers."""

from __future__ import annotations

import json

import pytest

from ohif_panel import Panel


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("html()", id="a page"),
        pytest.param("html(500)", id="an error's page"),
        pytest.param('new Response("")', id="nothing"),
        pytest.param("null", id="null"),
        pytest.param("({})", id="another shape"),
        pytest.param("json(null, 400)", id="no reason"),
    ],
)
def test_polling_goes_on_after_any_answer(panel: Panel, answer: str) -> None:
    """A proxy's page instead of JSON ended it for good."""
    found = panel.does(f"""
      console.error = () => {{}};
      let wrong = true;
      for (const [path, right] of Object.entries(answers))
        answers[path] = (...a) => wrong && path !== "whoami" ? {answer} : right(...a);
      live.startLive();
      const away = await until(() => get().server === "away");
      const why = get().why;
      wrong = false;
      say({{away, why, back: await until(() => get().server === "ok")}});
    """)
    assert (found["away"], found["back"]) == (True, True)
    assert found["why"].endswith(".")
    if answer in ("html()", 'new Response("")'):
        assert found["why"].startswith("Something else answered in the server's place")


def test_a_page_instead_of_an_answer_is_said_where_it_was_asked_for(panel: Panel) -> None:
    found = panel.does("""
      answers["forget/requests/7/approve"] = () => html();
      const done = await actions.approve(request(7, "requested"));
      say({done, fault: get().fault, busy: get().busy});
    """)
    assert (found["done"], found["busy"]) == (False, False)
    assert "Something else answered" in found["fault"]


#: What a server knows of its work: its tasks, else the last run in its store.
_WORK = """
let tasks = [];
const last = {id: "8", status: "DONE", request: {model: "unlearn"}, details: ["forgotten"]};
const none = () => json({detail: "No Train task was started since the server runs."}, 404);
answers["train/unlearn"] = () => {
  tasks = [{id: "older", status: "DONE"}, {id: "own", status: "SUBMITTED"}];
  return tasks[1];
};
answers["train/"] = (q) =>
  q.get("all") === "true" ? (tasks.length ? tasks : none()) : tasks.at(-1) ?? last;
const options = {dry_run: false, method: "", quick: false, restore: ""};
"""


@pytest.mark.parametrize(
    ("tasks", "said", "fault"),
    [
        ('[{id: "own", status: "DONE"}]', "nothing had to be run", ""),
        ('[{id: "own", status: "ERROR"}]', "", "ended before it began"),
        ('[{id: "own", status: "STOPPED"}]', "", "stopped before it began"),
        pytest.param("[]", "", "knows nothing of the work", id="started again"),
        pytest.param(
            '[{id: "new", status: "DONE"}]', "", "knows nothing of the work", id="and used since"
        ),
    ],
)
def test_work_that_ends_without_a_run_is_not_awaited(
    panel: Panel, tasks: str, said: str, fault: str
) -> None:
    """A request that no version was taught is fulfilled at once, without any run."""
    found = panel.does(f"""
      {_WORK}
      answers["runs"] = () => [run("8", "done")];
      live.startLive();
      await until(() => get().runs.length);
      await actions.unlearn([request(1, "approved")], options);
      const waits = !!get().pending;
      const looked = () => asked.filter(a => a.startsWith("train/?")).length > 2;
      const goes_on = await until(looked) && !!get().pending;
      tasks = {tasks};
      const ended = await until(() => !get().pending);
      say({{waits, goes_on, ended, said: get().said, fault: get().fault}});
    """)
    assert (found["waits"], found["goes_on"], found["ended"]) == (True, True, True)
    assert said in found["said"]
    assert said or "ended" not in found["said"]
    assert fault in found["fault"]
    assert bool(found["fault"]) == bool(fault)


def test_work_is_awaited_while_the_server_is_away(panel: Panel) -> None:
    found = panel.does(f"""
      {_WORK}
      const stop = live.startLive();
      await actions.unlearn([request(1, "approved")], options);
      const known = answers["train/"];
      answers["train/"] = () => html(502);
      const looked = () => asked.filter(a => a.startsWith("train/?")).length > 2;
      const waits = await until(looked) && !!get().pending;
      answers["train/"] = known;
      tasks[1].status = "DONE";
      const ended = await until(() => !get().pending);
      stop();
      say({{waits, ended}});
    """)
    assert found == {"waits": True, "ended": True}


@pytest.mark.parametrize("when", ["before the order is answered", "with the task's end"])
def test_a_run_ends_the_waiting(panel: Panel, when: str) -> None:
    """Also one that is told of before its order is answered; the task's end says nothing then."""
    early = json.dumps(when.startswith("before"))
    found = panel.does(f"""
      {_WORK}
      const told = () => {{ answers["runs"] = () => [run("9", "done")]; }};
      const [order, know] = [answers["train/unlearn"], answers["train/"]];
      answers["train/unlearn"] = async () => {{
        if ({early}) {{ told(); await refresh.refresh(); }}
        return order();
      }};
      answers["train/"] = (q) => {{ told(); tasks[1].status = "DONE"; return know(q); }};
      await actions.unlearn([request(1, "approved")], options);
      const stop = live.startLive();
      const ended = await until(() => !get().pending);
      stop();
      say({{ended, said: get().said}});
    """)
    assert found == {"ended": True, "said": "The unlearning starts."}


def test_what_is_in_work_is_said_to_run_only_while_it_does(panel: Panel) -> None:
    found = panel.does("""
      const runs = [run("1", "running", {parameters: {requests: ["5"]}}), run("2", "done")];
      const ended = [{...runs[0], state: "cancelled"}];
      const all = words.stateOf;
      say({
        running: all(request(5, "working"), runs), other: all(request(6, "working"), runs),
        killed: all(request(5, "working"), ended),
        hidden: all(request(6, "working", {reached: "hidden"}), runs),
        elsewhere: all(request(6, "working", {reached: "unlearned"}), runs),
        refused: all(request(6, "refused"), runs),
        fulfilled: all(request(6, "fulfilled", {reached: "unlearned"}), runs),
        as_asked: all(request(6, "fulfilled", {needed: "hidden", reached: "hidden"}), runs),
      });
    """)
    assert found == {
        "running": "being unlearned",
        "other": "not yet forgotten",
        "killed": "not yet forgotten",
        "hidden": "only hidden so far",
        "elsewhere": "another model still knows it",
        "refused": "tried, not forgotten",  # by an audit, a failure or a person who stopped it
        "fulfilled": "forgotten, restorable",
        "as_asked": "hidden, not forgotten",
    }


def test_what_is_only_hidden_is_not_among_what_is_forgotten(panel: Panel) -> None:
    """Its weights hold the study: where no more was asked for it was green, and forgotten."""
    found = panel.does("""
      const levels = {hidden: ["hidden", "hidden"], short: ["unlearned", "hidden"],
        elsewhere: ["hidden", "hidden"], gone: ["unlearned", "unlearned"]};
      set({requests: Object.entries(levels).map(([request_id, [needed, reached]]) => request(
        1, ["hidden", "gone"].includes(request_id) ? "fulfilled" : "working",
        {request_id, needed, reached}))});
      const all = () => drawn(forgetset.ForgetSection());
      const rows = (open) => {
        store.setDraft("search-open", open);
        const found = all().filter(n => n.props?.["data-cy"] === "sul-request");
        return found.map(n => n.props["data-id"]);
      };
      const chips = all().filter(n => n.props?.["data-cy"] === "sul-chip");
      const options = all().filter(n => n.type === "option");
      say({
        chips: chips.map(n => [n.props.className.split(" ")[1], text(n)]),
        option: text(options.find(n => n.props.value === "hidden")),
        hidden: rows("hidden"), forgotten: rows("fulfilled"), working: rows("working"),
      });
    """)
    assert found["chips"] == [
        ["warn", "hidden, not forgotten"], ["warn", "only hidden so far"],
        ["warn", "another model still knows it"], ["good", "forgotten, restorable"],
    ]  # fmt: skip
    assert found["option"] == "hidden, not forgotten"
    assert (found["hidden"], found["forgotten"]) == (["hidden", "short"], ["gone"])
    assert found["working"] == ["elsewhere"]


def test_who_agreed_is_named_with_their_reason_and_one_more_mark_is_no_news(panel: Panel) -> None:
    found = panel.does("""
      const more = {marked_by: "system", reason: "quality"};
      const agreed = {...more, agreed_by: "anna", agreed_reason: "wrong_patient"};
      answers["forget/requests/1"] = () => ({history: [
        {why: "audit 1: refused"}, {why: "marked, too: quality. blurred"}]});
      const both = [more, agreed].map(m => request(1, "working", m));
      set({me: {name: "anna", may_mark: true, may_decide: false}});
      say([...both.map(words.reasonOf), ...both.map(words.whoOf), await actions.lastStep(both[0])]);
    """)
    assert found == [
        "Image quality", "Wrong patient", "system", "system, anna agreed", "audit 1: refused",
    ]  # fmt: skip


def test_a_run_that_ended_unseen_is_told(panel: Panel) -> None:
    """While the tab is hidden, more runs may end than a list of the newest has."""
    found = panel.does("""
      const newest = [1, 2, 3, 4, 5].map(n => run(`${n}0`, "done", {kind: "plan"}));
      let running = [run("01", "running"), run("02", "running")];
      answers["runs"] = (q) => q.get("state") === "running" ? running : newest;
      await refresh.refresh();
      const first = get().runs.filter(r => r.state === "running").map(r => r.run_id);
      answers["runs/01"] = () => run("01", "cancelled", {message: "stopped"});
      running = [];  // and the other is not there any more: another store
      await refresh.refresh();
      say({first, left: get().runs.filter(r => r.state === "running").length, said: get().said});
    """)
    assert sorted(found["first"]) == ["01", "02"]
    assert (found["left"], found["said"]) == (0, "Unlearning: cancelled. stopped")


@pytest.mark.parametrize("kind", ["restore", "purge", "unlearn"])
def test_the_end_of_a_run_does_not_replace_what_its_order_was_answered(
    panel: Panel, kind: str
) -> None:
    """A purge that took seconds lost the list of places that are still open."""
    found = panel.does(f"""
      answers["runs"] = () => [run("01", "running", {{kind: "{kind}"}})];
      await refresh.refresh();
      set({{said: "Destroyed for good: v0001. Still to be looked at: labels"}});
      answers["runs"] = () => [run("01", "done", {{kind: "{kind}"}})];
      await refresh.refresh();
      say(get().said);
    """)
    assert ("Still to be looked at" in found) == (kind != "unlearn")


def test_an_older_plan_does_not_replace_a_newer(panel: Panel) -> None:
    """Nor one that comes when the dialog was left for another."""
    found = panel.does("""
      const hold = {};
      answers["unlearning/plan"] = (q) =>
        new Promise(done => { hold[q.get("method")] = () => done({lines: [q.get("method")]}); });
      const one = request(1, "approved");
      actions.openDialog({kind: "unlearn", requests: [one]});
      const plans = ["slow", "fast"].map(m => actions.loadPlan([one], "", m));
      await until(() => hold.slow && hold.fast);
      hold.fast(); await plans[1];
      hold.slow(); await plans[0];
      const lines = get().plan.lines;
      const late = actions.loadPlan([one], "", "late");
      await until(() => hold.late);
      actions.closeDialog();
      actions.openDialog({kind: "unlearn", requests: [request(2, "approved")]});
      hold.late(); await late;
      say({lines, plan: get().plan, asking: get().asking});
    """)
    assert found == {"lines": ["fast"], "plan": None, "asking": True}


def test_a_refused_plan_takes_the_one_before_away(panel: Panel) -> None:
    found = panel.does("""
      answers["unlearning/plan"] = (q) => q.get("method")
        ? json({detail: "it was taught the liver. Train again."}, 400) : {lines: ["all"]};
      const one = request(1, "approved");
      await actions.loadPlan([one], "", "");
      const lines = get().plan.lines;
      await actions.loadPlan([one], "", "calibrated");
      say({lines, plan: get().plan, asking: get().asking, fault: get().fault});
    """)
    assert found == {
        "lines": ["all"], "plan": None, "asking": False,
        "fault": "It was taught the liver. Train again.",
    }  # fmt: skip


@pytest.mark.parametrize("dialog", ["unlearn", "purge"])
@pytest.mark.parametrize(
    ("answer", "server", "fault"),
    [
        pytest.param('json({detail: "it is not known. Ask."}, 400)', "ok", "It is not", id="no"),
        pytest.param("html(504)", "ok", "took too long to answer. Try again", id="a proxy's limit"),
        pytest.param("html(502)", "ok", "does not answer", id="a proxy"),
        pytest.param("late()", "away", "took too long to answer. Try again", id="own limit"),
        pytest.param("json(null, 401)", "expired", "Sign in again", id="no session"),
    ],
)
def test_a_question_that_failed_can_be_asked_again(
    panel: Panel, dialog: str, answer: str, server: str, fault: str
) -> None:
    """The order stayed out of reach, for a reason that was not so, and nothing led to a sign-in."""
    found = panel.does(f"""
      const [kind, one] = ["{dialog}", request(1, "fulfilled")];
      const late = () => {{ throw new DOMException("", "TimeoutError"); }};
      const path = kind === "purge" ? "forget/requests/1/purge" : "unlearning/plan";
      answers[path] = () => {answer};
      await refresh.refresh();
      actions.openDialog({{kind, request: one, requests: [one]}});
      await (kind === "purge" ? actions.loadPurge(one) : actions.loadPlan([one], "", ""));
      const look = () => {{
        const all = drawn(dialogs.Dialogs());
        const label = kind === "purge" ? "Purge" : "Unlearn";
        return {{
          server: get().server, fault: get().fault, why: button(all, label).title,
          again: !!button(all, "Ask the server again"),
          sign_in: all.some(n => n.props?.["data-cy"] === "sul-sign-in"),
        }};
      }};
      const failed = look();
      await refresh.refresh(); // the server is there, or the session was renewed
      const back = look();
      answers[path] = () => (
        kind === "purge" ? {{destroyed: ["v1"], requests: []}} : {{lines: ["all"], ways: []}});
      button(drawn(dialogs.Dialogs()), "Ask the server again")?.onClick();
      await until(() => get().plan || get().wouldPurge, 2);
      say({{failed, back, after: look()}});
    """)
    failed, back, after = (found[k] for k in ("failed", "back", "after"))
    assert (failed["server"], back["server"]) == (server, "ok")
    assert fault in failed["fault"]
    assert bool(back["fault"]) == (server == "ok")
    assert failed["sign_in"] == (server == "expired")
    for tried in (failed, back):
        assert tried["again"]
        assert tried["why"] == "The server gave no answer to act on; see above."
    assert (after["again"], after["fault"]) == (False, "")
    assert after["why"] == f"Type “{dialog}” first."


def test_what_opens_a_deposit_is_said_of_several_requests_too(panel: Panel) -> None:
    """Its key is made of the keys of all."""
    found = panel.does("""
      const both = [request(1, "approved"), request(2, "approved")];
      actions.openDialog({kind: "unlearn", requests: both});
      say(text(dialogs.Dialogs()));
    """)
    assert "one key" not in found
    assert "keys of all requests that are unlearned together" in found
    assert "until one of them is purged" in found
