// What the tests do with the package, the same in Node and in a browser. Each returns plain data.
import { ListenSession, SpeechSession, events } from "../src/index.js";

/** Everything spoken, in pieces of text, while the line may drop. */
export async function speak({ urls, text, options = {} }) {
  const voice = new SpeechSession(urls, { backoffMs: 20, ...options });
  const words = text.match(/\S+\s*/g) ?? [];
  (async () => {
    for (const word of words) {
      voice.say(word);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    voice.end();
  })();
  let spoken = "";
  let frames = 0;
  let inOrder = true;
  for await (const chunk of voice) {
    inOrder &&= chunk.unit === [...spoken].length;
    spoken += chunk.text;
    frames += chunk.audio.length;
  }
  return { spoken, frames, inOrder, resumed: voice.resumed, restarts: voice.restarts };
}

/** Everything heard of samples that are said in real time, four times faster. */
export async function listen({ urls, samples, options = {} }) {
  const ear = new ListenSession(urls, { backoffMs: 20, ...options });
  const sound = Int16Array.from(samples);
  (async () => {
    for (let at = 0; at < sound.length; at += 1600) {
      await ear.say(sound.slice(at, at + 1600));
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
    ear.end();
  })();
  let partials = 0;
  for await (const news of ear) if (news.type === "partial") partials += 1;
  return { text: ear.text, partials, resumed: ear.resumed };
}

/** A job's numbered events, while the line may drop. */
export async function follow({ urls, options = {} }) {
  const ids = [];
  let text = "";
  let last = "";
  for await (const event of events(urls, { backoffMs: 20, ...options })) {
    if (event.id) ids.push(Number(event.id.split(":").at(-1)));
    if (event.type === "delta") text += event.data.text;
    last = event.type;
  }
  return { ids, text, last };
}

/** The name of the error that a session ends with. */
export async function refused({ urls, options = {} }) {
  try {
    for await (const chunk of new SpeechSession(urls, { backoffMs: 5, attempts: 2, ...options })) void chunk;
  } catch (error) {
    return { code: error.code, message: error.message };
  }
  return { code: "" };
}
