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
