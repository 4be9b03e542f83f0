"""What the panel knows of studies, in node: which it asks for, and what late answers do."""

from __future__ import annotations

import pytest

from ohif_panel import Panel

_VIEWER = """
const shown = (study, series, Modality = "CT") => (
  {StudyInstanceUID: study, SeriesInstanceUID: series, Modality});
let sets = [shown("1.1", "1.1.1"), shown("1.2", "1.2.1"), shown("1.2", "1.2.2", "SEG")];
host.useServices({displaySetService: {getActiveDisplaySets: () => sets}});
set({active: {study: "1.1", series: [{uid: "1.1.1", words: ""}]}});
set({support: [{uid: "1.3.1", words: ""}]});
const all = (q) => [...q.getAll("study"), ...q.getAll("series")];
"""


def test_every_study_in_sight_is_asked_for(panel: Panel) -> None:
    """A mark elsewhere on a prior, or on a series that was chosen for adapting, stayed unseen."""
    found = panel.does(
        _VIEWER
        + """
      answers["forget/status"] = (q) => Object.fromEntries(
        all(q).map(uid => [uid, {marked: true, covers: [], proposals: []}]));
      await refresh.refresh();
      const marked = Object.keys(get().status).sort();
      // what cannot be asked for among the others does not hide the active study
      answers["forget/status"] = (q) => all(q).includes("1.2")
        ? json({detail: "1.2 is no study"}, 400)
        : Object.fromEntries(all(q).map(uid => [uid, {marked: false, covers: [], proposals: []}]));
      await refresh.refresh();
      const {status, statusFault, server} = get();
      // many series are asked for in addresses that proxies take
      sets = Array.from({length: 400}, (_, n) => shown("1.1", `1.1.${"5".repeat(58)}.${n}`));
      asked.length = 0;
      await refresh.refresh();
      say({marked, after: status["1.1"].marked, statusFault, server,
           longest: Math.max(...asked.map(a => a.length)),
           known: Object.keys(get().status).length});
    """
    )
    assert found["marked"] == ["1.1", "1.1.1", "1.2", "1.2.1", "1.3.1"]
    assert (found["after"], found["statusFault"], found["server"]) == (False, "", "ok")
    assert found["longest"] < 8000
    assert found["known"] > 400


def test_requests_beyond_the_newest_are_found(panel: Panel) -> None:
    """Of a long list, what is open and what covers the active study."""
    found = panel.does(
        _VIEWER
        + """
      const old = [request(1, "fulfilled"), request(2, "approved"), request(3, "withdrawn")];
      const cover = {request_id: "1", target_kind: "study", state: "fulfilled"};
      answers["forget/status"] = () => ({"1.1": {marked: true, covers: [cover], proposals: []}});
      answers["forget/requests"] = (q) => {
        const rows = Array.from({length: 200}, (_, n) => request(1000 - n, "withdrawn"));
        const open = q.getAll("state");
        return open.length
          ? {total: 1, requests: old.filter(r => open.includes(r.state))}
          : {total: 203, requests: rows.slice(0, Number(q.get("limit")))};
      };
      answers["forget/requests/1"] = () => old[0];
      await refresh.refresh();
      say(get().requests.map(r => r.request_id).filter(id => Number(id) < 801 || id === "1000"));
    """
    )
    assert found == ["1000", "2", "1"]  # newest first


def test_a_slow_answer_on_one_study_takes_no_newer_request_away(panel: Panel) -> None:
    found = panel.does(
        _VIEWER
        + """
      const cover = {request_id: "1", target_kind: "study", state: "fulfilled"};
      answers["forget/status"] = () => ({"1.1": {marked: true, covers: [cover], proposals: []}});
      let answer;
      answers["forget/requests/1"] = () => new Promise(done => { answer = () => done(old); });
      const old = request(1, "fulfilled");
      const looks = refresh.lookAtStudy();
      await until(() => answer);
      const slow = answer;
      answers["forget/requests/1"] = () => old;
      answers["forget/requests"] = () => ({total: 1, requests: [request(9, "requested")]});
      await refresh.refresh();
      slow();
      await looks;
      say(get().requests.map(r => r.request_id));
    """
    )
    assert found == ["9", "1"]


def test_an_older_answer_on_a_study_replaces_no_newer(panel: Panel) -> None:
    """It took the badge away that a mark had just brought."""
    found = panel.does(
        _VIEWER
        + """
      const is = (marked) => (q) => Object.fromEntries(
        all(q).map(uid => [uid, {marked, covers: [], proposals: []}]));
      let slow;
      answers["forget/status"] = (q) => new Promise(done => { slow ??= () => done(is(false)(q)); });
      const looks = refresh.lookAtStudy();
      await until(() => slow);
      answers["forget/status"] = is(true);
      await refresh.refresh();
      answers["forget/status"] = is(false); // of its own later questions
      slow(); await until(() => asked.filter(a => a.includes("1.3.1")).length > 1);
      await looks;
      const {status} = get();
      say([status["1.1"].marked, status["1.1.1"].marked, status["1.2"].marked]);
    """
    )
    assert found == [True, True, True]


@pytest.mark.parametrize("next_study", ["1.1", "1.2"])
def test_why_a_state_is_not_known_is_said_of_the_study_that_was_asked_for(
    panel: Panel, next_study: str
) -> None:
    found = panel.does(
        _VIEWER
        + f"""
      let refuse;
      answers["forget/status"] = () => new Promise(done => {{
        refuse ??= () => done(json({{detail: "1.1 is no study"}}, 400)); }});
      const looks = refresh.lookAtStudy();
      await until(() => refuse);
      answers["forget/status"] = () => ({{}});
      set({{active: {{study: "{next_study}", series: []}}}});
      refuse();
      await looks;
      say(get().statusFault);
    """
    )
    assert found == ("1.1 is no study" if next_study == "1.1" else "")


def test_why_a_state_is_not_known_goes_with_its_study(panel: Panel) -> None:
    found = panel.does(
        _VIEWER
        + """
      set({active: {study: "1.7", series: []}, statusFault: "1.7 is no study"});
      active.watchActive(() => {})();
      say([get().active.study, get().statusFault]);
    """
    )
    assert found == ["1.1", ""]


def test_what_was_to_be_asked_is_asked_though_the_round_before_failed(panel: Panel) -> None:
    """A mark was not seen until something else changed."""
    found = panel.does("""
      let fail;
      const known = answers["whoami"];
      answers["whoami"] = () => new Promise(done => { fail = () => done(json(null, 500)); });
      const rounds = [refresh.refresh()];
      await until(() => fail);
      answers["whoami"] = known;
      rounds.push(refresh.refresh());
      fail();
      await Promise.all(rounds);
      say([asked.filter(a => a === "whoami").length, get().server]);
    """)
    assert found == [2, "ok"]


#: The study list: ``show`` mounts the cells of studies, and ``cells`` says what they read.
_LIST = """
window.dispatchEvent = () => true;
const column = menus.customizations()["workList.columns"].$apply([])[0];
const cell = (uid) => column.cell({row: {original: {studyInstanceUid: uid}}});
const why = (uid) => drawn(cell(uid)).find(n => n.props).props.title;
const cells = (uids) => uids.map(uid => text(cell(uid)));
const ends = [];
const show = (uids) => {
  react.useEffect = (effect) => { ends.push(effect()); };
  drawn(uids.map(cell));
  react.useEffect = () => {};
};
const is = (marked) => (q) => Object.fromEntries(
  q.getAll("study").map(uid => [uid, {marked, covers: [], proposals: [], series_marked: 0}]));
const count = () => asked.filter(a => a.startsWith("forget/status")).length;
"""


def test_the_study_list_asks_again_and_says_what_is_not_known(panel: Panel) -> None:
    """One failed question left the column blank, as if nothing were marked; nothing came later."""
    found = panel.does(
        _LIST
        + """
      const uids = Array.from({length: 100}, (_, n) => `1.2.${"5".repeat(55)}.${n}`);
      answers["forget/status"] = () => html(502);
      show(uids);
      const reads = (words) => until(() => cells(uids).every(found => found === words));
      const failed = await reads("?");
      const fault = why(uids[0]);
      answers["forget/status"] = is(false);
      const none = await reads("");
      answers["forget/status"] = is(true); // by another person
      const marked = await reads("FORGET");
      const longest = Math.max(...asked.map(a => a.length));
      for (const end of ends) end();
      await until(() => false, 0.3);
      const before = count();
      await until(() => false, 1.5);
      say({failed, fault, none, marked, longest, quiet: count() === before});
    """
    )
    assert (found["failed"], found["none"], found["marked"]) == (True, True, True)
    assert "does not answer" in found["fault"]
    assert found["longest"] < 8000
    assert found["quiet"]


def test_a_study_that_cannot_be_asked_for_hides_no_other_in_the_list(panel: Panel) -> None:
    found = panel.does(
        _LIST
        + """
      const uids = ["1.1", "none", "1.2"];
      answers["forget/status"] = (q) => q.getAll("study").includes("none")
        ? json({detail: "none is no study"}, 400) : is(true)(q);
      show(uids);
      await until(() => cells(uids).every(found => found));
      await until(() => count() > 5); // again, but for what was refused
      say({reads: cells(uids), why: why("none"), last: asked.at(-1)});
    """
    )
    assert found["reads"] == ["FORGET", "?", "FORGET"]
    assert found["why"] == "None is no study"
    assert found["last"] == "forget/status?study=1.1&study=1.2"
