// Plain script, no library: sends orders, follows their progress, shows what came of them.
"use strict";

const byId = (id) => document.getElementById(id);
const NUMBERS = ["duration_s", "seed", "cfg", "top_k", "top_p", "temperature"];

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text) {
  byId("message").textContent = text;
}

async function setUp() {
  const { runs, defaults } = await (await fetch("/api/models")).json();
  const shortest = Math.min(...runs.map((run) => run.trained_s));
  for (const name of NUMBERS) if (name in defaults) byId(name).value = defaults[name];
  byId("duration_s").value = Math.min(defaults.duration_s, shortest);
  byId("negative_prompt").value = defaults.negative_prompt;
  runs.forEach((run, index) => {
    const box = element("input", { type: "checkbox", name: "run", value: run.name, checked: index < 2 });
    byId("runs").append(
      element("label", { className: "choice" }, box, `${run.name} (step ${run.step}, trained on ${run.trained_s} s)`));
  });
  byId("form").addEventListener("submit", order);
}

async function order(event) {
  event.preventDefault();
  say("");
  const runs = [...document.querySelectorAll("input[name=run]:checked")].map((box) => box.value);
  if (runs.length < 1 || runs.length > 2) return say("Choose one model, or two to compare.");
  const wanted = { prompt: byId("prompt").value, negative_prompt: byId("negative_prompt").value, as_is: byId("as_is").checked, runs };
  for (const name of NUMBERS) {
    if (byId(name).value === "" || !byId(name).checkValidity()) return say(`${name}: not a number that will do`);
    wanted[name] = Number(byId(name).value);
  }
  let answer;
  try {
    answer = await fetch("/api/jobs", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wanted),
    });
  } catch {
    return say("The server does not answer.");
  }
  const found = await answer.json();
  if (!answer.ok) return say(found.error || found.detail || "refused");
  follow(found.job, wanted);
}

function follow(job, wanted) {
  const status = element("p", { textContent: "waiting" });
  const takes = wanted.runs.map((run, index) => {
    const picture = element("div", { className: "empty" });
    const bar = element("progress", { max: 1, value: 0, ariaLabel: `progress of ${run}` });
    const box = element("div", { className: "take" }, element("b", { textContent: run }), picture, bar);
    return { index, box, picture, bar, player: null, shown: false };
  });
  const boxes = element("div", { className: "takes" }, ...takes.map((take) => take.box));
  const title = element("h2", { textContent: wanted.prompt });
  const heard = element("div", { className: "heard" });
  byId("jobs").prepend(element("article", {}, title, heard, status, boxes));
  watch(job, status, (now) => {
    heard.textContent = hearing(wanted.prompt, now.takes);
    show(job, wanted, now, status, takes);
  });
}

// The prompt in the form of the models' training, if it is another, and what they do not take in.
function hearing(prompt, takes) {
  const lines = takes.flatMap((take) => [...(take.heard === prompt ? [] : [`heard as: ${take.heard}`]), ...take.warnings]);
  return [...new Set(lines)].join("; ");
}

// A browser has six connections to a server, and a stream holds one for as long as it lasts: only
// the clip that is being made has a stream. Those in line ask now and then.
async function watch(job, status, tell) {
  for (let waiting = true; waiting;) {
    let pause = 1000;
    try {
      const answer = await fetch(`/api/jobs/${job}`, { cache: "no-store" });
      if (answer.status === 404) return status.textContent = "The server no longer has this clip.";
      if (!answer.ok) throw new Error("refused");
      const now = await answer.json();
      tell(now);
      if (now.state === "done" || now.state === "failed") return;
      waiting = now.state === "waiting";
      if (!now.ahead) pause = 100;  // it is the next one
    } catch {
      status.textContent = "The server does not answer.";
    }
    if (waiting) await new Promise((go) => setTimeout(go, pause));
  }
  const events = new EventSource(`/api/jobs/${job}/events`);
  events.onmessage = (message) => {
    const now = JSON.parse(message.data);
    tell(now);
    if (now.state === "done" || now.state === "failed") events.close();
  };
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) status.textContent = "The server does not answer.";
  };
}

function show(job, wanted, now, status, takes) {
  const made = now.takes.reduce((sum, take) => sum + take.made_s, 0);
  const speed = now.spent_s > 0 ? `, ${(made / now.spent_s).toFixed(1)}x real time` : "";
  const long = now.takes.find((take) => take.total_s > take.trained_s);
  const windows = long ? `, in windows: longer than the ${long.trained_s} s that ${long.run} was trained on` : "";
  const settings = `seed ${wanted.seed}, guidance ${wanted.cfg}${windows}`;
  status.textContent = {
    waiting: now.ahead ? `waiting, ${now.ahead} before it` : "waiting",
    making: `${made.toFixed(1)} s made${speed}`,
    done: `${settings}${speed}`,
    failed: now.error,
  }[now.state];
  now.takes.forEach((found, index) => {
    const take = takes[index];
    take.bar.value = found.made_s / found.total_s;
    if (found.made_s > 0 && !take.player) {
      // Can be heard from here on: the server sends the rest as it is made.
      take.player = element("audio", { controls: true, preload: "none", src: `/api/jobs/${job}/${index}.wav` });
      take.box.append(take.player);
    }
    if (found.spectrogram && !take.shown) {
      take.shown = true;
      const picture = element("img", { src: found.spectrogram, alt: `spectrogram of ${found.run}` });
      take.picture.replaceWith(picture);
      take.bar.remove();
      take.player.preload = "metadata";
      if (take.player.paused) take.player.load();
    }
  });
}

setUp().catch(() => say("The server does not answer."));
