"use strict";
const body = document.querySelector("tbody");
const rows = [...body.rows];
const buttons = [...document.querySelectorAll("th button")];
const shown = document.getElementById("shown");

const search = document.getElementById("search");
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  shown.textContent = rows.filter((row) => !row.hidden).length;
});

// Numbers by size, the rest as text; what is not known comes last either way.
const compare = (a, b) =>
  a !== "" && b !== "" && !isNaN(a) && !isNaN(b)
    ? a - b
    : a.localeCompare(b, undefined, { numeric: true });

for (const button of buttons) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of buttons) other.parentElement.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[header.cellIndex].dataset.value;
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return up ? compare(x, y) : compare(y, x);
    });
    body.append(...rows);
  });
}
