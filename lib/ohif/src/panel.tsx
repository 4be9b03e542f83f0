// The panel "Forget & adapt".
import { AdapterSection } from "./adapter";
import { Dialogs } from "./dialogs";
import { keepFocus } from "./focus";
import { ForgetSection } from "./forgetset";
import { Act, Fault, SignIn } from "./parts";
import { React } from "./react";
import { refresh } from "./refresh";
import { RunSection } from "./runs";
import { useStore } from "./store";
import { StudySection } from "./study";
import { themeOf } from "./style";

function ServerState(): JSX.Element | null {
  const server = useStore((s) => s.server);
  const why = useStore((s) => s.why);
  if (server === "ok") return null;
  if (server === "starting") return <p className="soft">Asking the server …</p>;
  return (
    <div className="sul-alert bad" role="alert" data-cy="sul-server" data-state={server}>
      <p className="words">{why}</p>
      {server === "expired" ? <SignIn /> : null}
      <Act label="Ask again" act={() => void refresh()} />
    </div>
  );
}

function ArchiveState(): JSX.Element | null {
  const outbox = useStore((s) => s.outbox);
  if (!outbox?.retrying) return null;
  return (
    <div className="sul-alert warn" role="status" data-cy="sul-pacs">
      <p className="words">
        The PACS does not take documents now ({outbox.retrying} wait and are sent when it is back).
        Marks hold all the same. {outbox.last_error}
      </p>
    </div>
  );
}

function Who(): JSX.Element | null {
  const me = useStore((s) => s.me);
  if (!me) return null;
  const role = me.may_decide ? "administrator" : me.may_mark ? "annotator" : "reader";
  return (
    <p className="soft" data-cy="sul-me">
      {me.signed_in ? `Signed in as ${me.name} (${role}).` : "Signing in is off: everybody may do everything."}
    </p>
  );
}

function Content(): JSX.Element {
  const said = useStore((s) => s.said);
  const dialog = useStore((s) => s.dialog !== null);
  const ref = React.useRef<HTMLDivElement>(null);
  const [theme, setTheme] = React.useState("dark");
  React.useEffect(() => setTheme(themeOf(ref.current)), []);
  React.useEffect(() => (ref.current ? keepFocus(ref.current) : undefined), []);
  return (
    <div className="sul" ref={ref} tabIndex={-1} data-theme={theme} data-cy="sul-panel"
      onKeyDown={(e) => e.stopPropagation() /* the viewer's own keys would swallow Enter */}>
      <ServerState />
      <ArchiveState />
      <div role="status" aria-live="polite" className={said ? "sul-alert words" : "sul-hidden"}
        data-cy="sul-said">{said}</div>
      {dialog ? null : <Fault />}
      <StudySection />
      <RunSection />
      <ForgetSection />
      <AdapterSection />
      <Who />
      <Dialogs />
    </div>
  );
}

/** Has no hooks: until the host has handed its React over there is nothing to call them on. */
export function Panel(): JSX.Element | null {
  return React ? <Content /> : null;
}
