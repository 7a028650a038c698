// Common to all pages: the switch between light and dark, and tables that their headings sort.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const told = () => {
    button.textContent = dark() ? "light colours" : "dark colours";
    button.setAttribute("aria-label", `switch to ${button.textContent}`);
  };
  const changed = () => { told(); root.dispatchEvent(new Event("theme")); };
  button.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; changed(); };
  system.addEventListener("change", changed);
  told();

  const number = (text) => (text === "" ? NaN : Number(text));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, i) => {
      head.querySelector("button").onclick = () => {
        const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
        const key = (row) => row.cells[i].dataset.v;
        body.append(...[...body.rows].sort((a, b) => {
          const x = key(a), y = key(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          const m = number(x), n = number(y);
          return way * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n);
        }));
      };
    });
  }
})();
