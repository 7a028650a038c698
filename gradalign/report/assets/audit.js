// Which verdicts are shown, and those alone that have the searched words.
(() => {
  const form = document.forms[0], rows = [...document.querySelector("tbody").rows];
  const filter = () => {
    const on = new Set([...form.querySelectorAll(":checked")].map((box) => box.value));
    const word = form.querySelector("[type=search]").value.toLowerCase();
    for (const row of rows) {
      row.hidden = !on.has(row.dataset.verdict) || !row.textContent.toLowerCase().includes(word);
    }
  };
  form.oninput = filter;
  form.onsubmit = (event) => event.preventDefault();
  filter();
})();
