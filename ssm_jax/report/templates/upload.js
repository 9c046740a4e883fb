"use strict";
(() => {
  const POLL = 500; // milliseconds
  const $ = (id) => document.getElementById(id);
  const drop = $("drop"), bar = $("bar");
  let turn = 0; // counts uploads: what belongs to an earlier one is not shown any more

  function fail(text) {
    $("error").textContent = text;
    $("error").hidden = false;
    $("progress").hidden = true;
  }

  function show(label, state, share) {
    $("error").hidden = true;
    $("progress").hidden = false;
    $("label").textContent = label;
    $("state").textContent = state;
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
  }

  function buttons(job) {
    $("open").hidden = !(job && job.state === "done");
    $("delete").hidden = !job;
    if (job) $("open").href = `/scans/${job.id}/report.html`;
  }

  function described(job) {
    if (job.state === "waiting")
      return [`Waiting: number ${job.position} in the line.`, null];
    if (job.state === "done") return ["Done.", 1];
    const which = job.scans > 1 ? `Scan ${job.scan} of ${job.scans}: ` : "";
    if (!job.total) return [which + "reading…", null];
    if (job.done >= job.total) return [which + "writing the results…", 1];
    return [`${which}slice ${job.done} of ${job.total}`, job.done / job.total];
  }

  // Follows a job to its end; opens the result of one that was uploaded here or ended while we
  // looked.
  async function follow(id, watched) {
    const mine = ++turn;
    while (mine === turn) {
      let job;
      try {
        const answer = await fetch(`/scans/${encodeURIComponent(id)}`);
        job = await answer.json();
        if (mine !== turn) return;
        if (!answer.ok) {
          history.replaceState(null, "", "/");
          return fail(job.error);
        }
      } catch {
        return fail("The server does not answer. Is it still running? Then load this page again.");
      }
      if (job.state === "failed") {
        history.replaceState(null, "", "/");
        return fail(`${job.label}: ${job.error}`);
      }
      show(job.label, ...described(job));
      buttons(job);
      if (job.state === "done") {
        if (watched) location.assign(`/scans/${job.id}/report.html`);
        return;
      }
      watched = true;
      await new Promise((resume) => setTimeout(resume, POLL));
    }
  }

  // The files of what was dropped, folders walked, as [file, its path].
  async function walked(entry, folder = "") {
    const path = folder + entry.name;
    if (entry.isFile) return [[await new Promise((take, fail) => entry.file(take, fail)), path]];
    const reader = entry.createReader(), found = [];
    while (true) {
      const some = await new Promise((take, fail) => reader.readEntries(take, fail));
      if (!some.length) return found;
      for (const inner of some) found.push(...await walked(inner, path + "/"));
    }
  }

  const chosen = (files) => [...files].map((file) => [file, file.webkitRelativePath || file.name]);

  // Uploads [file, path] pairs.
  function send(all) {
    if (!all.length) return fail("There is no file in it.");
    const bytes = all.reduce((sum, [file]) => sum + file.size, 0);
    const limit = Number(drop.dataset.limit), most = Number(drop.dataset.files);
    if (bytes > limit)
      return fail(`${bytes} bytes are too many: this server takes ${limit} at once.`);
    if (all.length > most)
      return fail(`${all.length} files are too many: this server takes ${most}; zip the series.`);
    const mine = ++turn;
    const form = new FormData();
    for (const [file, path] of all) form.append("file", file, path);
    const label = all.length === 1 ? all[0][0].name : `${all.length} files`;
    const request = new XMLHttpRequest();
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      if (mine === turn) show(label, "Uploading…", event.loaded / Math.max(event.total, 1));
    });
    request.addEventListener("load", () => {
      if (mine !== turn) return;
      if (request.status !== 202)
        return fail(request.response ? request.response.error : `Error ${request.status}`);
      history.replaceState(null, "", `/#${request.response.id}`);
      follow(request.response.id, true);
    });
    request.addEventListener("error", () => {
      if (mine === turn) fail("The upload was broken off: the server is gone or refused it.");
    });
    show(label, "Uploading…", 0);
    buttons(null);
    request.open("POST", "/scans");
    request.send(form);
  }

  for (const name of ["dragenter", "dragover"])
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const files = [...event.dataTransfer.files];
    // Entries are only there until the first wait; a script's own files have none.
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const entries = items.map((item) => item.webkitGetAsEntry());
    if (!entries.length || entries.includes(null)) return send(chosen(files));
    try {
      send((await Promise.all(entries.map((entry) => walked(entry)))).flat());
    } catch (error) {
      fail(`What was dropped cannot be read: ${error.message}`);
    }
  });
  for (const field of [$("file"), $("folder")])
    field.addEventListener("change", () => {
      if (field.files.length) send(chosen(field.files));
      field.value = "";
    });
  $("delete").addEventListener("click", async () => {
    const id = location.hash.slice(1);
    turn++;
    history.replaceState(null, "", "/");
    $("progress").hidden = true;
    await fetch(`/scans/${encodeURIComponent(id)}`, { method: "DELETE" });
  });
  const known = () => {
    if (/^#[\w-]{22}$/.test(location.hash)) follow(location.hash.slice(1), false);
  };
  window.addEventListener("hashchange", known);
  known();
})();
