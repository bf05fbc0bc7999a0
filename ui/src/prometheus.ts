// Metrics in Prometheus' text format, and what two readings of them say of the time between.

/** Name of a sample -> its values, one for each set of labels: those that are read here differ in the model only. */
export type Samples = Map<string, number[]>;

export function parseMetrics(text: string): Samples {
  const samples: Samples = new Map();
  for (const line of text.split("\n")) {
    // name{labels} value, or name value; label values may hold any character, quotes escaped.
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?\s+(\S+)/.exec(line);
    if (!match) continue;
    const [, name, written] = match as unknown as [string, string, string];
    if (name.endsWith("_bucket")) continue;
    const value = written === "+Inf" ? Infinity : written === "-Inf" ? -Infinity : Number(written);
    if (!Number.isNaN(value)) samples.set(name, [...(samples.get(name) ?? []), value]);
  }
  return samples;
}

export interface Reading {
  at: number; // milliseconds
  running: number;
  waiting: number;
  kvUsage: number; // of 1
  hitRate: number; // of 1
  promptTokens: number;
  outputTokens: number;
  preemptions: number;
  ended: number; // sequences
  seconds: number; // of those, in all
  decodeSeconds: number;
  endedTokens: number;
}

export function reading(samples: Samples, at: number): Reading {
  const get = (name: string): number => (samples.get(name) ?? []).reduce((sum, value) => sum + value, 0);
  const lookedUp = get("vllm:prefix_cache_queries_total");
  return {
    at,
    running: get("vllm:num_requests_running"),
    waiting: get("vllm:num_requests_waiting"),
    kvUsage: Math.max(0, ...(samples.get("vllm:kv_cache_usage_perc") ?? [])), // of the fullest of several
    hitRate: lookedUp ? get("vllm:prefix_cache_hits_total") / lookedUp : 0,
    promptTokens: get("vllm:prompt_tokens_total"),
    outputTokens: get("vllm:generation_tokens_total"),
    preemptions: get("vllm:num_preemptions_total"),
    ended: get("vllm:e2e_request_latency_seconds_count"),
    seconds: get("vllm:e2e_request_latency_seconds_sum"),
    decodeSeconds: get("vllm:request_decode_time_seconds_sum"),
    endedTokens: get("vllm:request_generation_tokens_sum"),
  };
}

/** Counters that went back: the server was started again between the two. */
export function isRestart(before: Reading, after: Reading): boolean {
  return after.outputTokens < before.outputTokens || after.promptTokens < before.promptTokens || after.ended < before.ended;
}

export interface Rates {
  prompt: number; // tokens a second
  output: number;
}

export function rates(before: Reading, after: Reading): Rates {
  const seconds = Math.max((after.at - before.at) / 1000, 1e-3);
  return {
    prompt: (after.promptTokens - before.promptTokens) / seconds,
    output: (after.outputTokens - before.outputTokens) / seconds,
  };
}

/** The requests that ended between two readings. One alone has its own times, several have their means. */
export interface Ended {
  at: number;
  count: number;
  tokens: number;
  seconds: number;
  firstToken: number; // seconds
}

export function ended(before: Reading, after: Reading): Ended | null {
  const count = after.ended - before.ended;
  if (count <= 0) return null;
  const seconds = (after.seconds - before.seconds) / count;
  const decode = (after.decodeSeconds - before.decodeSeconds) / count;
  return { at: after.at, count, tokens: (after.endedTokens - before.endedTokens) / count, seconds, firstToken: Math.max(0, seconds - decode) };
}
