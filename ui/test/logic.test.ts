import assert from "node:assert/strict";
import { test } from "node:test";
import { type Message, add, fold, newConversation, newMessage, newReply, path, requestBody, select, siblings, textOf } from "../src/conversation.js";
import { ended, isRestart, parseMetrics, rates, reading } from "../src/prometheus.js";
import { eventData } from "../src/sse.js";

async function dataOf(...pieces: string[]): Promise<string[]> {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(Uint8Array.from(Buffer.from(piece, "latin1")));
      controller.close();
    },
  });
  const found: string[] = [];
  for await (const data of eventData(body)) found.push(data);
  return found;
}

test("events do not depend on how their bytes were cut", async () => {
  const text = Buffer.from(": keep-alive\n\ndata: é\n\nevent: x\r\ndata:b\r\n\r\ndata: c\ndata: d\n\ndata: cut off").toString("latin1");
  for (let cut = 0; cut < text.length; cut += 1) {
    assert.deepEqual(await dataOf(text.slice(0, cut), text.slice(cut)), ["é", "b", "c\nd"]);
  }
  assert.deepEqual(await dataOf(...text), ["é", "b", "c\nd"]);
});

function talk(): { conversation: ReturnType<typeof newConversation>; question: Message; answer: Message } {
  const conversation = newConversation({ numbers: {} });
  const question = newMessage("user", null, "Question\nin two lines");
  add(conversation, question);
  const answer = newReply(question.id, "m");
  add(conversation, answer);
  fold(answer, { choices: [{ delta: { content: "An" }, finish_reason: null }] });
  fold(answer, { choices: [{ delta: { content: "swer" }, finish_reason: "stop" }] });
  return { conversation, question, answer };
}

test("a reply that is made again stands beside the first, and both can be shown", () => {
  const { conversation, question, answer } = talk();
  const again = newReply(question.id, "m");
  add(conversation, again);
  assert.deepEqual(path(conversation), [question, again]);
  assert.deepEqual(siblings(conversation, again), [answer, again]);
  select(conversation, answer);
  assert.deepEqual(path(conversation), [question, answer]);
});

test("an edited message begins a branch, and going back shows the end of the old one", () => {
  const { conversation, question, answer } = talk();
  const edited = newMessage("user", null, "Other");
  add(conversation, edited);
  assert.deepEqual(path(conversation), [edited]);
  select(conversation, question);
  assert.deepEqual(path(conversation), [question, answer]);
  assert.equal(conversation.title, "Question");
});

test("what is sent: the shown path, settings that were given, and no reply that is empty", () => {
  const { conversation, question, answer } = talk();
  conversation.settings = { system: "Be brief.", numbers: { temperature: 0, top_k: 5 }, stop: ["x"], thinking: false, tools: '[{"a": 1}]' };
  const failed = newReply(question.id, "m");
  add(conversation, failed);
  const last = newMessage("user", answer.id, "More");
  add(conversation, last);
  assert.deepEqual(requestBody("m", path(conversation), conversation.settings), {
    model: "m", stream: true, stream_options: { include_usage: true }, temperature: 0, top_k: 5, stop: ["x"],
    enable_thinking: false, tools: [{ a: 1 }],
    messages: [
      { role: "system", content: "Be brief." }, { role: "user", content: "Question\nin two lines" },
      { role: "assistant", content: "Answer" }, { role: "user", content: "More" },
    ],
  });
  assert.deepEqual(requestBody("m", [question, failed], { numbers: {} }).messages, [{ role: "user", content: "Question\nin two lines" }]);
  assert.throws(() => requestBody("m", [question], { numbers: {}, tools: "{}" }), /a list of tools/);
});

test("parts that are no text are sent as parts", () => {
  const image = { type: "image_url" as const, image_url: { url: "data:image/png;base64,AA" } };
  const message = { ...newMessage("user", null, "See"), parts: [{ type: "text" as const, text: "See" }, image] };
  assert.deepEqual(requestBody("m", [message], { numbers: {} }).messages, [{ role: "user", content: message.parts }]);
});

test("calls and thoughts are folded from their pieces, and go back as the API wants them", () => {
  const { conversation, question } = talk();
  const reply = newReply(question.id, "m");
  add(conversation, reply);
  const piece = (delta: object, finish: string | null = null): void => fold(reply, { choices: [{ delta, finish_reason: finish }] });
  piece({ reasoning: "Hm", reasoning_content: "Hm" });
  piece({ reasoning_content: "m" });
  piece({ tool_calls: [{ index: 0, id: "c0", function: { name: "f", arguments: "" } }] });
  piece({ tool_calls: [{ index: 0, function: { arguments: '{"a"' } }] });
  piece({ tool_calls: [{ index: 0, function: { arguments: ": 1}" } }, { index: 1, id: "c1", function: { name: "g", arguments: "{}" } }] });
  piece({}, "tool_calls");
  assert.equal(reply.reasoning, "Hmm");
  assert.equal(reply.finish, "tool_calls");
  assert.equal(textOf(reply), "");
  const result = { ...newMessage("tool", reply.id, "7"), toolCallId: "c0" };
  const sent = requestBody("m", [question, reply, result], { numbers: {} }).messages as unknown[];
  assert.deepEqual(sent.slice(1), [
    { role: "assistant", content: null, tool_calls: [
      { id: "c0", type: "function", function: { name: "f", arguments: '{"a": 1}' } },
      { id: "c1", type: "function", function: { name: "g", arguments: "{}" } },
    ] },
    { role: "tool", tool_call_id: "c0", content: "7" },
  ]);
});

test("metrics: labels of any text, several models, no buckets", () => {
  const samples = parseMetrics([
    "# HELP vllm:x Help {with} braces 5", "# TYPE vllm:x gauge", 'vllm:x{model_name="a"} 1', 'vllm:x{model_name="b} 9 \\" 7"} 2.5',
    'vllm:y_bucket{le="+Inf",model_name="a"} 3', "plain 1e3", "inf +Inf", "", "not a sample",
  ].join("\n"));
  assert.deepEqual([...samples], [["vllm:x", [1, 2.5]], ["plain", [1000]], ["inf", [Infinity]]]);
  const two = parseMetrics([1, 3].map((i) => [
    `vllm:num_requests_running{model_name="${i}"} ${i}`, `vllm:kv_cache_usage_perc{model_name="${i}"} 0.${i}`,
    `vllm:prefix_cache_queries_total{model_name="${i}"} ${4 * i}`, `vllm:prefix_cache_hits_total{model_name="${i}"} ${i}`,
  ].join("\n")).join("\n"));
  const { running, kvUsage, hitRate } = reading(two, 0);
  assert.deepEqual({ running, kvUsage, hitRate }, { running: 4, kvUsage: 0.3, hitRate: 0.25 });
});

test("rates, and the requests that ended between two readings", () => {
  const at = (ms: number, values: Record<string, number>) => reading(new Map(Object.entries(values).map(([name, value]) => [name, [value]])), ms);
  const before = at(1000, { "vllm:generation_tokens_total": 100, "vllm:prompt_tokens_total": 50, "vllm:e2e_request_latency_seconds_count": 3, "vllm:e2e_request_latency_seconds_sum": 10, "vllm:request_decode_time_seconds_sum": 8, "vllm:request_generation_tokens_sum": 60 });
  const after = at(3000, { "vllm:generation_tokens_total": 140, "vllm:prompt_tokens_total": 50, "vllm:e2e_request_latency_seconds_count": 5, "vllm:e2e_request_latency_seconds_sum": 16, "vllm:request_decode_time_seconds_sum": 13, "vllm:request_generation_tokens_sum": 100 });
  assert.deepEqual(rates(before, after), { prompt: 0, output: 20 });
  assert.deepEqual(ended(before, after), { at: 3000, count: 2, tokens: 20, seconds: 3, firstToken: 0.5 });
  assert.equal(ended(after, after), null);
  assert.equal(isRestart(before, after), false);
  assert.equal(isRestart(after, before), true);
});
