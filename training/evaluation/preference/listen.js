// Plain script, no library: asks what comes next, plays two sounds, sends the choice until it is stored.
"use strict";

const byId = (id) => document.getElementById(id);
const SIDES = ["left", "right"];
const NUMBER = { left: 1, right: 2 };
const GIVE_UP_S = 15;  // an attempt that brings nothing for so long counts as failed
const token = location.hash.slice(1);

let current = null;  // the pair that is shown
let busy = true;     // between a choice that is sent and the next pair
const players = { left: new Audio(), right: new Audio() };
const heard = { left: false, right: false };

function say(text) {
  if (byId("message").textContent !== text) byId("message").textContent = text;
}

function wait(seconds) {
  return new Promise((go) => setTimeout(go, 1000 * seconds));
}

// Asks until there is an answer that asking again would not change; waits where the server is away,
// in trouble, or says that it was asked too often.
async function ask(path, body) {
  for (let attempt = 0; ; attempt += 1) {
    let pause = Math.min(2 ** attempt / 2, 8);
    const attempted = new AbortController();
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => attempted.abort(), 1000 * GIVE_UP_S);
    };
    alive();
    try {
      const options = { headers: { Authorization: `Bearer ${token}` }, cache: "no-store", signal: attempted.signal };
      if (body) {
        options.method = "POST";
        options.headers["Content-Type"] = "application/json";
        options.body = body;
      }
      const answer = await fetch(path, options);
      // Read here: a connection that breaks half-way is a failed attempt.
      const kind = answer.headers.get("Content-Type") || "";
      const content = kind.startsWith("audio/") ? await download(answer, kind, alive) : await answer.json().catch(() => null);
      if (answer.status === 429) pause = Number(answer.headers.get("Retry-After")) || pause;
      else if (answer.status < 500 && (content !== null || !answer.ok)) {
        if (attempt > 0) say("");
        return { ok: answer.ok, status: answer.status, content };
      }
    } catch {
      // Said below.
    } finally {
      clearTimeout(timer);
    }
    say(body
      ? "The server does not answer. Your choice is kept here and sent again by itself; please leave this page open."
      : "The server does not answer. Trying again …");
    await wait(pause);
  }
}

// A sound may take minutes over a slow link: as long as something comes, it is on its way.
async function download(answer, type, alive) {
  const parts = [];
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    alive();
  }
  return new Blob(parts, { type });
}

async function start() {
  if (!token) return say("This page needs the link that you were sent: it ends in # and some letters.");
  const answer = await ask("/api/next");
  if (answer.ok) return show(answer.content);
  say(answer.status === 401
    ? "This link is not valid. Please copy it again, whole, or ask whoever invited you."
    : answer.content?.error || "The server refused the request.");
}

async function show(standing) {
  stop();
  const { done, of, pair } = standing;
  byId("progress").hidden = false;
  byId("bar").max = of;
  byId("bar").value = done;
  byId("count").textContent = pair ? `${done + 1} of ${of}` : `${of} of ${of} done`;
  byId("news").textContent = pair ? `Pair ${done + 1} of ${of}` : "";
  document.title = pair ? `${done + 1} of ${of} – Listening study` : "Listening study";
  current = pair;
  byId("form").hidden = !pair;
  byId("end").hidden = Boolean(pair);
  if (!pair) {
    byId("end-text").textContent = `All ${of} answers are stored. You can close this page.`;
    return byId("end-title").focus();
  }
  byId("prompt").textContent = pair.prompt;
  forget();
  byId("prompt-title").focus({ preventScroll: true });
  scrollTo(0, 0);
  // Both are here before either can be played: neither is known by how fast it comes.
  const found = await Promise.all(pair.clips.map((name) => ask(`/api/clips/${name}`)));
  if (found.some((clip) => !clip.ok)) return say("A sound cannot be had from the server. Please tell whoever invited you.");
  SIDES.forEach((side, i) => {
    URL.revokeObjectURL(players[side].src);
    players[side].src = URL.createObjectURL(found[i].content);
  });
  busy = false;
  refresh();
}

function forget() {
  byId("comment").value = "";
  for (const side of SIDES) {
    heard[side] = false;
    radio(side).checked = false;
    byId(`place-${side}`).value = 0;
  }
  refresh();
}

function radio(side) {
  return document.querySelector(`input[value=${side}]`);
}

function chosen() {
  return SIDES.find((side) => radio(side).checked);
}

// What is still to do before the answer can go; nothing when it can.
function lacking() {
  const silent = SIDES.filter((side) => !heard[side]).map((side) => NUMBER[side]);
  if (silent.length === 2) return "Play both sounds first.";
  if (silent.length === 1) return `Play sound ${silent[0]} as well.`;
  return chosen() ? "" : "Choose the better sound.";
}

function refresh() {
  for (const side of SIDES) {
    const on = !players[side].paused;
    const button = byId(`play-${side}`);
    button.setAttribute("aria-disabled", String(busy));
    radio(side).disabled = busy;  // what is on its way is what is shown
    button.toggleAttribute("data-on", on);
    button.querySelector(".word").textContent = on ? "Pause" : "Play";
    byId(`heard-${side}`).textContent = heard[side] ? "✓ played" : "not played yet";
    byId(`heard-${side}`).classList.toggle("yes", heard[side]);
  }
  byId("comment").readOnly = busy;
  byId("send").setAttribute("aria-disabled", String(busy || lacking() !== ""));
  byId("hint").textContent = busy ? "One moment …" : lacking() || `Sends: sound ${NUMBER[chosen()]} is better.`;
}

function stop() {
  for (const side of SIDES) {
    players[side].pause();
    if (players[side].readyState > 0) players[side].currentTime = 0;
  }
}

async function toggle(side) {
  if (busy) return;
  const player = players[side];
  if (!player.paused) return player.pause();
  players[side === "left" ? "right" : "left"].pause();
  try {
    await player.play();
  } catch (error) {
    if (error.name !== "AbortError") say(`Sound ${NUMBER[side]} cannot be played by this browser (${error.name}).`);
  }
}

async function send(event) {
  event.preventDefault();
  if (busy) return;
  if (lacking()) {
    say("");
    return say(lacking());
  }
  say("");
  busy = true;
  stop();
  refresh();
  const reply = { pair: current.name, choice: chosen(), comment: byId("comment").value };
  const answer = await ask("/api/answers", JSON.stringify(reply));
  if (answer.ok) return show(answer.content);
  if (answer.status !== 409) {
    busy = false;
    refresh();
    return say(answer.content?.error || "The server refused the answer.");
  }
  // Answered before, perhaps in another tab: that answer stands.
  const next = await ask("/api/next");
  if (next.ok) await show(next.content);
  say("This pair was answered before, perhaps in another tab; that answer stands.");
}

for (const side of SIDES) {
  const player = players[side];
  byId(`play-${side}`).addEventListener("click", () => toggle(side));
  radio(side).addEventListener("change", () => { say(""); refresh(); });
  for (const event of ["play", "pause", "ended"]) player.addEventListener(event, refresh);
  player.addEventListener("playing", () => { heard[side] = true; say(""); refresh(); });
  player.addEventListener("timeupdate", () => {
    byId(`place-${side}`).value = player.duration > 0 ? player.currentTime / player.duration : 0;
  });
}

byId("form").addEventListener("submit", send);

document.addEventListener("keydown", (event) => {
  const writing = event.target.id === "comment";
  if (byId("form").hidden || event.altKey || event.metaKey || event.isComposing) return;
  if (writing && event.key === "Enter" && event.ctrlKey) return byId("form").requestSubmit();
  if (writing || event.ctrlKey || !byId("keys").checked) return;
  const side = { 1: "left", 2: "right" }[event.key];
  const choice = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
  if (side && !event.repeat) toggle(side);
  else if (choice && !busy) {
    radio(choice).checked = true;
    radio(choice).focus({ preventScroll: true });
    say("");
    refresh();
  } else if (event.key === "Enter" && !event.repeat && !event.target.closest("button, summary, input")) {
    byId("form").requestSubmit();
  } else return;
  event.preventDefault();
});

window.addEventListener("hashchange", () => location.reload());
start();
