// Tables: ordered by any column, filtered by any text, scrolled sideways only where they must be.
"use strict";
(() => {
  const said = document.getElementById("said");
  const texts = new Intl.Collator("en", { numeric: true });
  const BLANK = /^[-–—]?$/;

  // What a row is ordered by in column i: its key where the column has keys, else its text; null comes last.
  const keysOf = (rows, i) => {
    const cells = rows.map((row) => row.cells[i]);
    const keyed = cells.some((cell) => "sort" in cell.dataset || "key" in cell.dataset);
    return cells.map((cell) => {
      if ("sort" in cell.dataset) return Number(cell.dataset.sort);
      if ("key" in cell.dataset) return cell.dataset.key;
      const text = cell.textContent.trim();
      return keyed || BLANK.test(text) ? null : text;
    });
  };

  // Numbers come before words. Keys are compared letter by letter, texts with the numbers in them as numbers.
  const compare = (a, b, keyed) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    if (typeof a === "string" && !keyed) return texts.compare(a, b);
    return a < b ? -1 : Number(a > b);
  };

  const order = (table, i, up) => {
    const rows = [...table.tBodies[0].rows];
    const keys = keysOf(rows, i);
    const keyed = rows.some((row) => "key" in row.cells[i].dataset);
    const places = rows.map((_, place) => place);
    places.sort((a, b) => {
      if (keys[a] === null || keys[b] === null) return Number(keys[a] === null) - Number(keys[b] === null);
      return up ? compare(keys[a], keys[b], keyed) : compare(keys[b], keys[a], keyed);
    });
    table.tBodies[0].append(...places.map((place) => rows[place]));
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = header.getAttribute("aria-sort") !== "ascending";
        for (const other of headers) other.setAttribute("aria-sort", "none");
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        order(table, i, up);
        said.textContent = `Sorted by ${button.textContent}, ${up ? "ascending" : "descending"}.`;
      });
    });
  }

  const runs = document.getElementById("runs-table");
  const rows = [...runs.tBodies[0].rows];
  const box = document.createElement("div");
  box.className = "filter";
  box.innerHTML = '<label for="filter">Filter runs</label>'
    + '<input id="filter" type="search" autocomplete="off" spellcheck="false" aria-controls="runs-table">'
    + '<span id="filtered"></span>';
  if (rows.length > 1) runs.closest(".table-block").prepend(box);
  const input = box.querySelector("input");
  const count = box.querySelector("span");

  // Every word must be somewhere in the row.
  const filter = () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = wanted.length ? `${shown} of ${rows.length} rows shown` : "";
    said.textContent = count.textContent || `All ${rows.length} rows shown`;
  };
  input.addEventListener("input", filter);

  // A link to a row shows it, whatever the filter says.
  const reveal = () => {
    const row = rows.find((one) => one.id && `#${one.id}` === decodeURIComponent(location.hash));
    if (!row) return;
    if (row.hidden) {
      input.value = "";
      filter();
    }
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("reveal", reveal);
  if (location.hash) reveal();

  // Only what can be scrolled is a stop for the Tab key.
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const region of document.querySelectorAll(".scroll, .paper")) watch.observe(region);
})();
