// Uses OpenAI's client for Node as its users do, and prints what each step had back as one JSON
// object. Run as `node client.mjs URL`.

import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const common = { model: "axion/demo", temperature: 0 };
const sum = [{ role: "user", content: "What is 12 + 30?" }];
const weather = [{ role: "user", content: "What is the weather in Paris?" }];
const anna = "Give me a JSON object with name Anna and age 30.";

const Person = z.object({ name: z.string(), age: z.number().int() });
const getWeather = zodFunction({
  name: "get_weather",
  description: "Get the current weather in a city.",
  parameters: z.object({ city: z.string().describe("Name of the city.") }),
  function: ({ city }) => JSON.stringify({ city, temperature: 18, condition: "sunny" }),
});

const steps = {
  async chat() {
    const { choices, usage } = await client.chat.completions.create({ ...common, messages: sum });
    return { text: choices[0].message.content, finish: choices[0].finish_reason, usage };
  },

  async stream() {
    const stream = client.chat.completions.stream({
      ...common,
      messages: sum,
      stream_options: { include_usage: true },
    });
    const deltas = [];
    stream.on("content", (delta) => deltas.push(delta));
    const { choices, usage } = await stream.finalChatCompletion();
    return { deltas, text: choices[0].message.content, usage };
  },

  async aborted() {
    const stream = await client.chat.completions.create({
      ...common,
      messages: sum,
      stream: true,
      ignore_eos: true,
      max_tokens: 1500,
    });
    let chunks = 0;
    for await (const _ of stream) {
      if (++chunks === 3) stream.controller.abort();
    }
    return chunks;
  },

  async toolStream() {
    const stream = client.chat.completions.stream({
      ...common,
      messages: weather,
      tools: [getWeather],
    });
    const pieces = [];
    stream.on("tool_calls.function.arguments.delta", (e) => pieces.push(e.arguments_delta));
    const { choices } = await stream.finalChatCompletion();
    const [call] = choices[0].message.tool_calls;
    return {
      pieces,
      name: call.function.name,
      parsed: call.function.parsed_arguments,
      finish: choices[0].finish_reason,
    };
  },

  async runTools() {
    const runner = client.chat.completions.runTools({
      ...common,
      messages: weather,
      tools: [getWeather],
      stream: true,
    });
    return runner.finalContent();
  },

  async parse() {
    const { choices } = await client.chat.completions.parse({
      ...common,
      messages: [{ role: "user", content: anna }],
      response_format: zodResponseFormat(Person, "person"),
    });
    return choices[0].message.parsed;
  },

  async embeddings() {
    const request = { model: "minilm", input: ["one", "two words"] };
    const byDefault = await client.embeddings.create(request); // it asks for base64 and decodes
    const asFloat = await client.embeddings.create({ ...request, encoding_format: "float" });
    return [byDefault, asFloat].map(({ data }) => data.map((item) => item.embedding));
  },

  async response() {
    const first = await client.responses.create({ ...common, input: weather[0].content });
    const input = sum[0].content;
    const next = await client.responses.create({
      ...common,
      input,
      previous_response_id: first.id,
    });
    return next.output_text;
  },

  async responseParse() {
    const format = zodTextFormat(Person, "person");
    return (await client.responses.parse({ ...common, input: anna, text: { format } }))
      .output_parsed;
  },

  async responseStream() {
    const stream = client.responses.stream({ ...common, input: sum[0].content });
    const types = [];
    for await (const event of stream) types.push(event.type);
    return { types, text: (await stream.finalResponse()).output_text };
  },

  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return ids;
  },

  async error() {
    try {
      await client.chat.completions.create({ model: "nobody/nothing", messages: sum });
    } catch (error) {
      const { status, code, requestID } = error;
      return { kind: error.constructor.name, status, code, requestID };
    }
  },
};

const answers = {};
for (const [name, step] of Object.entries(steps)) answers[name] = await step();
console.log(JSON.stringify(answers));
