// The live view of the engine: what /metrics says, once a second while the panel is open and the page is seen.

import { byId, el, svg } from "./dom.js";
import { type Ended, type Reading, ended, isRestart, parseMetrics, rates, reading } from "./prometheus.js";

const SECONDS_SHOWN = 90;
const MOST_ENDED = 12;
/** Rates are means over as many readings, so that they can be read. */
const SMOOTHED = 4;

export class EnginePanel {
  private readings: Reading[] = [];
  private speeds: number[] = [];
  private endings: Ended[] = [];

  /** The metrics' text, as just read. */
  update(text: string): void {
    const now = reading(parseMetrics(text), performance.now());
    const last = this.readings.at(-1);
    if (last && (isRestart(last, now) || now.at - last.at > 15_000)) this.clear();
    else if (last) {
      const news = ended(last, now);
      if (news) this.endings = [{ ...news, at: Date.now() }, ...this.endings].slice(0, MOST_ENDED);
    }
    this.readings = [...this.readings, now].slice(-SMOOTHED - 1);
    const first = this.readings[0] ?? now;
    const rate = rates(first, now);
    this.speeds = [...this.speeds, rate.output].slice(-SECONDS_SHOWN);
    byId("engine-running").textContent = count(now.running);
    byId("engine-waiting").textContent = count(now.waiting);
    byId("engine-output").textContent = amount(rate.output);
    byId("engine-prompt").textContent = amount(rate.prompt);
    byId("engine-kv").textContent = percent(now.kvUsage);
    byId("engine-hits").textContent = percent(now.hitRate);
    byId("engine-preemptions").textContent = count(now.preemptions);
    byId<HTMLMeterElement>("engine-kv-meter").value = now.kvUsage;
    this.draw();
    this.list();
  }

  private clear(): void {
    this.readings = [];
    this.speeds = [];
    this.endings = [];
  }

  private draw(): void {
    const most = Math.max(...this.speeds, 1);
    const start = SECONDS_SHOWN - this.speeds.length;
    const points = this.speeds.map((speed, i) => `${start + i},${(38 - (36 * speed) / most).toFixed(1)}`);
    const line = svg("polyline", { points: points.join(" "), class: "line" });
    const area = svg("polygon", { points: [`${start},40`, ...points, `${SECONDS_SHOWN - 1},40`].join(" "), class: "area" });
    byId("engine-graph").replaceChildren(
      svg("svg", { viewBox: `0 0 ${SECONDS_SHOWN - 1} 40`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line));
    byId("engine-most").textContent = `at most ${amount(most)} in the last ${SECONDS_SHOWN} s`;
  }

  private list(): void {
    byId("engine-none").hidden = this.endings.length > 0;
    byId("engine-table").hidden = this.endings.length === 0;
    byId("engine-ended").replaceChildren(...this.endings.map((one) => el("tr", {},
      el("td", {}, new Date(one.at).toLocaleTimeString(), one.count > 1 ? ` (${one.count})` : ""),
      el("td", {}, duration(one.firstToken)),
      el("td", {}, duration(one.seconds)),
      el("td", {}, count(one.tokens)))));
  }
}

export function count(value: number): string {
  return Math.round(value).toLocaleString();
}

export function amount(value: number): string {
  return value < 9.95 ? value.toFixed(1) : count(value);
}

function percent(value: number): string {
  const shown = value * 100;
  return `${shown > 0 && shown < 9.95 ? shown.toFixed(1) : Math.round(shown)} %`;
}

export function duration(seconds: number): string {
  return seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${seconds < 99.95 ? seconds.toFixed(1) : count(seconds)} s`;
}
