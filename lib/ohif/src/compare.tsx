// The masks of a forgotten study before and after, side by side as far as the role allows.
import { compareMasks } from "./actions";
import { placeOf, removeMasks, show } from "./masks";
import { Act } from "./parts";
import { React } from "./react";
import { useStore } from "./store";
import type { Masks } from "./masks";
import { NOT_ADMIN } from "./words";

const CHOICES: [Masks["shown"], string][] = [["before", "Before"], ["now", "Now"], ["none", "Neither"]];

function Shown({ masks }: { masks: Masks }): JSX.Element {
  return (
    <div data-cy="sul-masks" data-shown={masks.shown}>
      <fieldset>
        <legend>Mask that is shown</legend>
        {CHOICES.map(([which, label]) => (
          <label key={which} className="inline">
            <input type="radio" name="sul-mask" checked={masks.shown === which}
              data-cy={`sul-mask-${which}`} onChange={() => show(which)} />{" "}
            {label}{which === "none" ? "" : ` (${masks.versions[which]})`}
          </label>
        ))}
      </fieldset>
      <p className="soft">Voxels before → now, and the Dice of the two masks:</p>
      <dl>
        {masks.structures.map((s) => (
          <React.Fragment key={s.name}>
            <dt>{s.name}</dt>
            <dd data-cy="sul-mask-figures" data-structure={s.name} data-dice={s.dice}>
              {s.before} → {s.now}, {s.dice.toFixed(3)}
            </dd>
          </React.Fragment>
        ))}
      </dl>
      <Act label="Remove the masks" name="sul-masks-remove" act={removeMasks} />
    </div>
  );
}

export function Compare(): JSX.Element | null {
  const active = useStore((s) => s.active);
  const status = useStore((s) => s.status);
  const masks = useStore((s) => s.masks);
  const looks = useStore((s) => s.looking.includes("masks"));
  const admin = useStore((s) => s.me?.may_decide ?? false);
  const series = active?.shown ?? "";
  const forgotten = status[series]?.covers.find((c) => c.state === "fulfilled");
  if (masks && masks.series === series) return <Shown masks={masks} />;
  if (!forgotten) return null;
  const why = !admin ? NOT_ADMIN
    : looks ? "Both masks are being made."
    : placeOf(series) ? undefined : "Show the series in a viewport first.";
  return (
    <Act label={looks ? "Working …" : "Compare masks before and now"} name="sul-compare" why={why}
      act={() => void compareMasks(series, forgotten.request_id)} />
  );
}
