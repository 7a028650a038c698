// The problems of one round: boxes, points, and a table that is searched, sorted and paged; only a page is in the document.
(() => {
  const PAGE = 50, TEXTS = ["problem", "source", "choice"];
  const MEASURES = ["score", "cosine", "dot", "t", "corr"];
  const at = Object.fromEntries(report.fields.map((name, i) => [name, i]));
  const by = (id) => document.getElementById(id);
  const get = (row, name) => row[at[name]];
  const make = (name, text, more = {}) => Object.assign(document.createElement(name), { textContent: text ?? "" }, more);
  const short = (value) => value === null || value === "" ? "-" : typeof value === "number" ? String(Number(value.toPrecision(3))) : value;
  const clip = (text, most) => (text.length > most ? text.slice(0, most - 1) + "\u2026" : text);
  const line = (text, most) => clip(text.split(/\s+/).join(" ").trim(), most);
  const title = (row) => line(get(row, "prompt"), 90) || get(row, "key");
  const choice = (row) => {
    if (get(row, "selected")) return "chosen";
    if (get(row, "gate")) return `gate ${get(row, "gate")}`;
    return get(row, "status") === "scored" ? "left" : get(row, "status").replace("_", " ");
  };
  const value = (row, name) => (name === "problem" ? title(row) : name === "choice" ? choice(row) : get(row, name));
  let view, columns, sorted = "rank", way = 1, first = 0, found = [];

  const words = new WeakMap();
  const haystack = (row) => {
    if (!words.has(row)) {
      const told = get(row, "responses").map((one) => one[0]);
      words.set(row, [get(row, "key"), get(row, "source"), get(row, "prompt"), get(row, "answer"), ...told].join("\n").toLowerCase());
    }
    return words.get(row);
  };

  const detail = (row) => {
    const box = make("div"), list = box.appendChild(make("dl"));
    for (const [name, text] of [["problem", get(row, "prompt") || "not kept"], ["answer", get(row, "answer")]]) {
      if (text === null) continue;
      list.append(make("dt", name));
      list.appendChild(make("dd")).append(make("pre", text));
    }
    const responses = get(row, "responses");
    if (responses.length) {
      const table = box.appendChild(make("table", "", { className: "responses" })), head = table.createTHead().insertRow();
      const shown = responses.length < get(row, "distinct") ? `${responses.length} most frequent of ${get(row, "distinct")} responses` : "responses";
      for (const name of [shown, "times", "reward"]) head.append(make("th", name, { scope: "col" }));
      const body = table.createTBody();
      for (const [text, count, reward] of responses) {
        const line = body.insertRow();
        line.insertCell().append(make("pre", text === "" ? "(empty)" : text));
        line.insertCell().textContent = count;
        line.insertCell().textContent = short(reward);
      }
    }
    const names = ["key", "source", "status", "gate", "rank", "n_rollouts", "pass_rate", "score", "cosine", "dot", "norm", "se", "t", "corr"];
    const known = names.filter((name) => get(row, name) !== null).map((name) => `${name} ${short(get(row, name))}`);
    box.append(make("small", known.join(", ")));
    return box;
  };

  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const hover = (row) => {
    const wide = Math.max(28, Math.min(64, Math.floor(innerWidth / 11))), lines = [];
    const text = line(get(row, "prompt"), 3 * wide) || get(row, "key");
    for (let i = 0; i < text.length; i += wide) lines.push(`<b>${plain(text.slice(i, i + wide))}</b>`);
    if (get(row, "answer") !== null) lines.push(`answer ${plain(line(get(row, "answer"), wide))}`);
    for (const [told, count, reward] of get(row, "responses")) {
      lines.push(`${count} \u00d7 ${plain(line(told, wide - 14)) || "(empty)"}  \u2192 ${short(reward)}`);
    }
    lines.push(`${plain(choice(row))}, ${plain(get(row, "source"))}, pass rate ${short(get(row, "pass_rate"))}`);
    return lines.join("<br>");
  };

  const points = () => {
    const measure = by("measure").value, places = new Map(view.rows.map((row, i) => [row, i]));
    const rows = view.rows.filter((row) => get(row, measure) != null && get(row, "pass_rate") !== null);
    const trace = (name, symbol, side) => {
      const mine = rows.filter((row) => get(row, "selected") === side);
      return {
        type: "scatter", mode: "markers", name, meta: name, x: mine.map((row) => get(row, "pass_rate")),
        y: mine.map((row) => get(row, measure)), text: mine.map(hover), customdata: mine.map((row) => places.get(row)),
        hovertemplate: "%{text}<extra></extra>", marker: { symbol, size: side ? 8 : 6, opacity: side ? 0.9 : 0.6 },
      };
    };
    const figure = {
      data: [trace("left", "circle", 0), trace("chosen", "diamond", 1)],
      layout: {
        height: Math.max(360, view.boxes?.layout.height ?? 0), margin: { l: 58, r: 12, t: 12, b: 44 }, showlegend: false, hovermode: "closest",
        xaxis: { title: { text: "pass rate" }, range: [-0.03, 1.03], zeroline: false },
        yaxis: { title: { text: measure === "score" ? view.score : measure, standoff: 8 } },
      },
    };
    if (rows.some((row) => get(row, "pass_rate") > 1 || get(row, "pass_rate") < 0)) delete figure.layout.xaxis.range;
    const missing = view.rows.length - rows.length;
    by("point-note").textContent = rows.length === 0 ? "Nothing in this round has both numbers."
      : missing ? `${missing.toLocaleString("en")} without these numbers are in the table only.` : "";
    by("scatter").hidden = rows.length === 0;
    if (!rows.length) return;
    plots.draw(by("scatter"), figure);
    by("scatter").removeAllListeners("plotly_click");
    by("scatter").on("plotly_click", (event) => keep(view.rows[event.points[0].customdata]));
  };

  const keep = (row) => {
    const box = by("kept"), close = make("button", "close", { type: "button" });
    close.onclick = () => { box.hidden = true; };
    box.replaceChildren(detail(row), document.createElement("br"), close);
    box.hidden = false;
  };

  const fill = () => {
    const body = document.querySelector("#problems-table tbody");
    body.replaceChildren(...found.slice(first, first + PAGE).map((row) => {
      const line = document.createElement("tr");
      columns.forEach((name, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (TEXTS.includes(name)) cell.classList.add("text");
        if (i === 0) {
          const button = make("button", title(row), { type: "button" });
          cell.scope = "row";
          button.setAttribute("aria-expanded", "false");
          button.onclick = () => {
            const open = button.getAttribute("aria-expanded") === "true";
            button.setAttribute("aria-expanded", String(!open));
            if (open) return line.nextSibling.remove();
            const more = document.createElement("tr"), wide = more.insertCell();
            wide.colSpan = columns.length;
            wide.className = "detail";
            wide.append(detail(row));
            line.after(more);
          };
          cell.append(button);
        } else {
          cell.textContent = short(value(row, name));
          if (name === "choice" && get(row, "selected")) cell.classList.add("chosen");
        }
        line.append(cell);
      });
      return line;
    }));
    const last = Math.min(first + PAGE, found.length);
    by("place").textContent = found.length ? `${first + 1} to ${last} of ${found.length}` : "no problem has these words";
    by("before").disabled = first === 0;
    by("after").disabled = last >= found.length;
  };

  const look = () => {
    const sought = by("search").value.toLowerCase().split(/\s+/).filter(Boolean), which = by("which").value, source = by("source").value;
    found = view.rows.filter((row) => (which === "" || get(row, "selected") === Number(which)) &&
      (source === "" || get(row, "source") === source) && sought.every((word) => haystack(row).includes(word)));
    found.sort((a, b) => {
      const x = value(a, sorted), y = value(b, sorted);
      if (x === null || y === null) return (x === null) - (y === null);
      return way * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
    first = 0;
    fill();
  };

  const heads = () => {
    const row = document.createElement("tr");
    for (const name of columns) {
      const cell = make("th", "", { scope: "col" }), button = make("button", name.replace("_", " "), { type: "button" });
      if (TEXTS.includes(name)) cell.className = "text";
      if (name === sorted) cell.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      button.onclick = () => {
        [way, sorted] = [sorted === name ? -way : 1, name];
        heads();
        look();
        document.querySelectorAll("#problems-table thead button")[columns.indexOf(name)].focus();
      };
      cell.append(button);
      row.append(cell);
    }
    document.querySelector("#problems-table thead").replaceChildren(row);
  };

  const options = (select, pairs) => {
    const before = select.value;
    select.replaceChildren(...pairs.map(([key, text]) => make("option", text, { value: key })));
    if (pairs.some(([key]) => key === before)) select.value = before;
  };

  const show = () => {
    view = report.views[Number(by("view").value)];
    const known = (name) => view.rows.some((row) => get(row, name) !== null);
    columns = ["problem", "source", "choice", ...["rank", "pass_rate", "score", "cosine", "dot", "t", "corr", "n_rollouts"].filter(known)];
    if (!columns.includes(sorted)) sorted = "rank";
    by("view-note").textContent = view.rows.length < view.all ? `${view.rows.length.toLocaleString("en")} of this round's ${view.all.toLocaleString("en")} problems are listed.` : "";
    const own = MEASURES.filter(known), kept = by("measure").value;
    options(by("measure"), own.map((name) => [name, name === "score" ? view.score : name]));
    if (!kept && own.includes("cosine")) by("measure").value = "cosine";
    options(by("source"), [["", "all"], ...[...new Set(view.rows.map((row) => get(row, "source")))].sort().map((name) => [name, name])]);
    by("boxes").hidden = view.boxes === null;
    if (view.boxes !== null) plots.draw(by("boxes"), view.boxes);
    points();
    by("kept").hidden = true;
    heads();
    look();
  };

  by("box-legend").innerHTML = '<b class=chosen>\u25a0 chosen</b> <b style="color:var(--left)">\u25a0 left</b>.';
  options(by("view"), report.views.map((one, i) => [String(i), one.label]));
  by("view").onchange = show;
  by("measure").onchange = points;
  for (const id of ["search", "which", "source"]) by(id).oninput = look;
  for (const id of ["choose", "filter"]) by(id).onsubmit = (event) => event.preventDefault();
  by("before").onclick = () => { first -= PAGE; fill(); };
  by("after").onclick = () => { first += PAGE; fill(); };
  show();
})();
