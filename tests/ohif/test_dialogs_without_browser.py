"""Dialogs of the panel in node: what they say, and what becomes of what they order."""

from __future__ import annotations

import pytest

from ohif_panel import Panel


def test_nothing_about_a_study_stays_when_it_is_left(panel: Panel) -> None:
    """A dialog stood over the next study, and marked the one before."""
    found = panel.does("""
      let answer;
      answers["unlearning/plan"] = () => new Promise(done => { answer = () => done({lines: []}); });
      actions.openDialog({kind: "unlearn", requests: []});
      const late = actions.loadPlan([], "", "");
      await until(() => answer);
      set({wouldPurge: {destroyed: [], requests: []}, fault: "no", said: "It is marked."});
      extension.default.onModeExit();
      answer(); await late;
      const {dialog, plan, wouldPurge, fault, said} = get();
      say([dialog, plan, wouldPurge, fault, said]);
    """)
    assert found == [None, None, None, "", ""]


def test_a_mark_names_whose_study_and_which(panel: Panel) -> None:
    """Two studies of one description were not told apart, nor the one that was marked."""
    found = panel.does("""
      const instance = {StudyDescription: "CT abdomen", PatientName: [{Alphabetic: "Doe^Jane"}],
        PatientID: "4711", StudyDate: "20260102"};
      const uid = (n) => `1.2.826.0.1.3680043.8.498.${n}`;
      const shown = {StudyInstanceUID: uid(1), SeriesInstanceUID: uid(11), Modality: "CT",
        SeriesDescription: "venous", instance};
      host.useServices({displaySetService: {
        getActiveDisplaySets: () => [shown], getDisplaySetByUID: () => shown}});
      active.watchActive(() => {})();
      const opened = () => {
        const all = drawn(dialogs.Dialogs());
        return {text: text(all), uid: all.find(n => n.props?.className === "id").props.title};
      };
      const found = {};
      const {segunlearnMark} = menus.commands().actions;
      for (const [name, asked] of Object.entries({
        study: {StudyInstanceUID: uid(1)}, other: {StudyInstanceUID: uid(2)},
        series: {displaySetInstanceUID: "a"},
      })) {
        segunlearnMark(asked);
        found[name] = opened();
      }
      const open = (target) => { actions.openDialog({kind: "mark", target}); return opened(); };
      found.here = open(active.studyTarget());
      found.patient = open(active.patientTarget());
      answers[`forget/studies/${uid(1)}`] = () => request(1, "requested", {message: ""});
      await actions.mark(active.studyTarget(), "quality", "", false, []);
      say({...found, said: get().said});
    """)
    whose = "Doe, Jane · 4711 · 2026-01-02"
    uid = "1.2.826.0.1.3680043.8.498."
    assert found["study"]["text"] == found["here"]["text"]
    for name, words, end in (("study", "CT abdomen", "1"), ("series", "CT · venous", "11")):
        assert words in found[name]["text"]
        assert whose in found[name]["text"]
        assert found[name]["uid"] == uid + end
    assert "Study that is not loaded" in found["other"]["text"]
    assert (found["other"]["uid"], whose in found["other"]["text"]) == (uid + "2", False)
    assert (found["patient"]["uid"], "Doe, Jane, 4711" in found["patient"]["text"]) == (
        "4711",
        True,
    )
    assert found["said"].startswith("The study is marked for forgetting (requested): CT abdomen")
    assert f"{whose} · 1.2.826.…43.8.498.1." in found["said"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param("lost()", "does not answer", id="nothing"),
        pytest.param("late()", "took too long", id="own limit"),
        pytest.param("html(502)", "does not answer", id="a proxy"),
        pytest.param("html(504)", "took too long", id="a proxy's limit"),
        pytest.param("html()", "Something else answered", id="a page"),
    ],
)
def test_of_an_order_without_an_answer_nobody_knows_whether_it_was_done(
    panel: Panel, answer: str, words: str
) -> None:
    """It was said to go on by itself, and nothing was sent again; then the words went, too."""
    found = panel.does(f"""
      const lost = () => {{ throw new TypeError("fetch failed"); }};
      const late = () => {{ throw new DOMException("", "TimeoutError"); }};
      const target = {{kind: "study", id: "1.1", issuer: "", words: "", whose: ""}};
      answers["forget/studies/1.1"] = () => {answer};
      await refresh.refresh();
      actions.openDialog({{kind: "mark", target}});
      const done = await actions.mark(target, "quality", "", false, []);
      const fault = get().fault;
      const known = answers["whoami"];
      answers["whoami"] = lost;
      await refresh.refresh();
      answers["whoami"] = known;
      await refresh.refresh();
      say({{done, fault, server: get().server, left: get().fault, kind: get().dialog.kind}});
    """)
    assert (found["done"], found["server"], found["kind"]) == (False, "ok", "mark")
    assert words in found["fault"]
    assert "It is not known whether this was done." in found["fault"]
    assert "by itself" not in found["fault"]
    assert found["left"] == found["fault"]


def test_a_server_that_refuses_an_order_says_so_itself(panel: Panel) -> None:
    found = panel.does("""
      answers["forget/requests/7/approve"] = () => json({detail: "the store is locked."}, 503);
      await actions.approve(request(7, "requested"));
      say(get().fault);
    """)
    assert found == "The store is locked."


#: Two studies, one of which is being marked: ``end`` answers; ``told`` is what the viewer shows.
_MARKING = """
const told = [];
host.useServices({uiNotificationService: {show: ({message}) => told.push(message)}});
const target = (id) => ({kind: "study", id, issuer: "", words: "", whose: ""});
let end;
answers["forget/studies/1.1"] = () => new Promise(done => { end = done; });
actions.openDialog({kind: "mark", target: target("1.1")});
const marking = actions.mark(target("1.1"), "quality", "", false, []);
await until(() => end);
const ends = async (answer) => { end(answer); await marking; };
const marked = request(1, "requested", {message: ""});
"""


@pytest.mark.parametrize("fails", [False, True], ids=["done", "refused"])
def test_the_end_of_an_order_is_no_matter_of_another_dialog(panel: Panel, fails: bool) -> None:
    """It was closed by it, or offered to mark its own study although the archive lacks it."""
    refusal = 'json({detail: "there is no such study; set even_if_unknown"}, 404)'
    found = panel.does(f"""
      {_MARKING}
      actions.closeDialog(); // as a browser does on a second Escape
      actions.openDialog({{kind: "mark", target: target("1.2")}});
      await ends({refusal if fails else "marked"});
      const {{dialog, fault, said, busy}} = get();
      say({{open: dialog?.target.id, fault, said, busy, told}});
    """)
    assert (found["open"], found["fault"], found["busy"]) == ("1.2", "", False)
    (told,) = found["told"]
    assert ("no such study" if fails else "is marked for forgetting") in told
    assert found["said"] == ("" if fails else told)


def test_the_end_of_an_order_is_told_where_its_dialog_was_closed(panel: Panel) -> None:
    found = panel.does(f"""
      {_MARKING}
      actions.closeDialog();
      await ends(json({{detail: "there is no such study."}}, 404));
      say([get().dialog, get().fault]);
    """)
    assert found == [None, "There is no such study."]


def test_nothing_is_said_over_a_study_of_what_was_begun_in_another(panel: Panel) -> None:
    found = panel.does(f"""
      {_MARKING}
      extension.default.onModeExit();
      await ends(marked);
      say({{said: get().said, fault: get().fault, told: told.length}});
    """)
    assert found == {"said": "", "fault": "", "told": 1}


def test_what_is_being_done_is_not_cancelled(panel: Panel) -> None:
    """Its dialog was closed, which looked as if it had been."""
    found = panel.does(f"""
      {_MARKING}
      const all = drawn(dialogs.Dialogs());
      all.find(n => n.type === "dialog").props.onCancel({{preventDefault() {{}}}});
      button(all, "Cancel").onClick();
      const during = [get().dialog?.kind, button(all, "Cancel").title];
      await ends(marked);
      say([...during, get().dialog]);
    """)
    assert found == ["mark", "It is being done, and cannot be cancelled here.", None]


@pytest.mark.parametrize(
    ("status", "detail", "offered"),
    [
        (
            409,
            'v1 also knows others: segunlearn restore 5, or POST /train/unlearn {"restore"',
            True,
        ),
        (409, "request 5 is purged; only a fulfilled one is restored or purged.", False),
        (500, "restore: POST /train/unlearn", False),
    ],
)
def test_forgetting_the_others_again_is_offered_where_the_server_asks_for_it(
    panel: Panel, status: int, detail: str, offered: bool
) -> None:
    found = panel.does(f"""
      const one = request(5, "fulfilled");
      answers["forget/requests/5/restore"] = () => json({{detail: {detail!r}}}, {status});
      actions.openDialog({{kind: "restore", request: one}});
      await actions.restore(one, "");
      const label = "Restore and forget the others again…";
      const offered = !!button(drawn(dialogs.Dialogs()), label);
      actions.openDialog({{kind: "restore", request: request(6, "fulfilled")}});
      say([offered, !!button(drawn(dialogs.Dialogs()), label)]);
    """)
    assert found == [offered, False]


def test_what_is_looked_at_keeps_nobody_from_acting(panel: Panel) -> None:
    """Masks took ten minutes, and a report had all the time of the world."""
    found = panel.does("""
      host.useServices({userAuthenticationService: {getAuthorizationHeader: () => "token"}});
      const never = () => new Promise(() => {});
      let given;
      answers["models"] = never;
      answers["audits/7/report"] = (_, init) => { given = init.signal; return never(); };
      set({audits: [{audit_id: "7", created: "", outcome: "passed"}]});
      const report = () =>
        drawn(runs.RunSection()).filter(n => n.type === "button").map(n => text(n));
      const idle = report();
      actions.compareMasks("1.1.1", "5");
      actions.showReport("7");
      await until(() => given);
      const signal = given;
      given = null;
      actions.showReport("7");
      answers["forget/requests/7/approve"] = () => ({});
      const approved = await actions.approve(request(7, "requested"));
      const limited = signal instanceof AbortSignal;
      say({idle, working: report(), limited, again: !!given, approved});
    """)
    assert (found["idle"], found["working"]) == (["Report"], ["Working …"])
    assert (found["limited"], found["again"], found["approved"]) == (True, False, True)


def test_a_report_opens_over_nothing_else(panel: Panel) -> None:
    found = panel.does("""
      const told = [];
      host.useServices({uiNotificationService: {show: ({message}) => told.push(message)}});
      let answer;
      answers["audits/7/report"] = () => new Promise(done => { answer = done; });
      const ask = async (meanwhile) => {
        answer = null;
        const shown = actions.showReport("7");
        await until(() => answer);
        meanwhile();
        answer(html());
        await shown;
        return get().dialog?.kind;
      };
      say({
        beside: await ask(() => actions.openDialog({kind: "adapt"})), told: told.length,
        left: await ask(() => extension.default.onModeExit()) ?? null,
        alone: await ask(() => {}), html: get().dialog.html,
      });
    """)
    assert found == {
        "beside": "adapt", "told": 1, "left": None, "alone": "report",
        "html": "<html>sign in</html>",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "parameters", "words"),
    [
        ("unlearn", '{method: "erode_and_repair"}', "unless the audit has passed already"),
        ("unlearn", '{method: "none"}', None),  # seals older versions
        ("purge", '{method: "none"}', None),
        ("restore", '{method: "none"}', None),
        ("train", "{}", "The version in service stays."),
    ],
)
def test_only_what_can_be_stopped_is_stopped(
    panel: Panel, kind: str, parameters: str, words: str | None
) -> None:
    """A purge and a restore never look whether they shall stop; what has passed is published."""
    found = panel.does(f"""
      set({{me: {{may_decide: true}}, runs: [run("1", "running", {{
        kind: "{kind}", parameters: {parameters}}})]}});
      const stop = button(drawn(runs.RunSection()), "Stop…");
      stop?.onClick();
      const asks = text(dialogs.Dialogs());
      answers["runs/1/cancel"] = () => ({{}});
      if (stop) await actions.cancel(get().runs[0]);
      say({{offered: !!stop, asks, said: get().said}});
    """)
    assert found["offered"] == (words is not None)
    for text in (found["asks"], found["said"]):
        assert (words or "") in text
        assert ("stays" in text) == (words is not None)


def test_a_restore_that_forgets_others_again_is_confirmed_as_what_it_is(panel: Panel) -> None:
    """It named no request, gave an unlearning's law alone, and the reason typed was not sent."""
    found = panel.does("""
      set({requests: [request(5, "fulfilled"), request(6, "fulfilled")]});
      let sent;
      answers["train/unlearn"] = (_, init) => {
        sent = JSON.parse(init.body);
        return {id: "1", status: "SUBMITTED"};
      };
      answers["unlearning/plan"] = () => ({lines: [], ways: [], requests: [
        {id: "5", what: "comes back"}, {id: "6", what: "stays forgotten"},
        {id: "elsewhere", what: "stays forgotten"}]});
      store.setDraft("why-5", "by letter");
      actions.openDialog({kind: "unlearn", requests: [], restore: "5"});
      const before = text(dialogs.Dialogs());
      await actions.loadPlan([], "5", "");
      const all = drawn(dialogs.Dialogs());
      const options = {dry_run: false, method: "", quick: false, restore: "5"};
      await actions.unlearn([], {...options, dry_run: true});
      const kept = store.draft("why-5");
      actions.openDialog({kind: "unlearn", requests: [], restore: "5"});
      await actions.unlearn([], options);
      say({before, text: text(all), why: button(all, "Restore").title, sent, kept,
           left: store.draft("why-5"), says: [...words.RESTORING, ...words.UNLEARNING]});
    """)
    assert "1.5" in found["before"]
    for part in (*found["says"], "study 1.5", "comes back", "study 1.6", "stays forgotten"):
        assert part in found["text"]
    assert "request elsewhere" in found["text"]
    assert found["why"] == "Type “restore” first."
    assert (found["sent"]["restore"], found["sent"]["why"]) == ("5", "by letter")
    assert (found["kept"], found["left"]) == ("by letter", "")


def test_what_is_unlearned_is_what_was_shown(panel: Panel) -> None:
    """What another administrator approved while the word was typed was unlearned, too."""
    found = panel.does("""
      const sent = [];
      const refused = () => json({detail: "8 came to it."}, 409);
      answers["train/unlearn"] = (_, init) => {
        sent.push(JSON.parse(init.body));
        return refused();
      };
      answers["unlearning/plan"] = () => ({lines: [], ways: [], requests: [
        {id: "6", what: "is unlearned"}, {id: "7", what: "is unlearned"}]});
      const options = {dry_run: false, method: "", quick: false, restore: ""};
      actions.openDialog({kind: "unlearn", requests: []});
      await actions.loadPlan([], "", "");
      await actions.unlearn([], options);
      const all = drawn(dialogs.Dialogs());
      const fault = text(all.find(n => n.props?.["data-cy"] === "sul-fault"));
      const again = button(all, "Ask the server again");
      again.onClick();
      await until(() => get().plan);
      await actions.unlearn([], {...options, dry_run: true});
      say({sent: sent.map(s => [s.requests, s.expected ?? null]), fault, again: !!again});
    """)
    assert found == {"sent": [["", "6,7"], ["", None]], "fault": "8 came to it.", "again": True}
