// Keeps the page up to date: fetches status.json and writes what differs into the tables that the
// server has made. Text goes in as text, never as markup. Also sorts and filters.
"use strict";

const INTERVAL = 2000;
const collator = new Intl.Collator(undefined, { numeric: true });
const tables = new Map();

/** A table of the page: its rows by key, and how they are ordered and filtered. */
class Table {
  constructor(element) {
    this.body = element.tBodies[0];
    this.blank = document.querySelector(`template[data-row-of="${element.dataset.table}"]`);
    this.rows = new Map([...this.body.rows].map((row) => [row.dataset.key, row]));
    this.order = [...this.rows.keys()];
    this.column = null;
    this.direction = 1;
    this.wanted = "";
    this.heads = [...element.tHead.rows[0].cells];
    if ("sortable" in element.dataset) this.heads.forEach((head, i) => this.makeSortable(head, i));
  }

  makeSortable(head, column) {
    if (head.classList.contains("curve")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => this.sortBy(column));
    head.replaceChildren(button);
  }

  /** By a column, then the other way round, then as the server has it. */
  sortBy(column) {
    const first = this.heads[column].classList.contains("number") ? -1 : 1;
    if (this.column !== column) [this.column, this.direction] = [column, first];
    else if (this.direction === first) this.direction = -first;
    else this.column = null;
    this.heads.forEach((head, i) => {
      if (i !== this.column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.direction > 0 ? "ascending" : "descending");
    });
    this.arrange();
  }

  filterBy(text) {
    this.wanted = text.trim().toLowerCase();
    this.arrange();
  }

  update(rows) {
    this.order = rows.map(([key]) => key);
    const gone = new Set(this.rows.keys());
    for (const [key, ...cells] of rows) {
      gone.delete(key);
      let row = this.rows.get(key);
      if (!row) this.rows.set(key, (row = this.makeRow(key)));
      cells.forEach((cell, i) => fill(row.cells[i], cell));
    }
    for (const key of gone) {
      this.rows.get(key).remove();
      this.rows.delete(key);
    }
    this.arrange();
  }

  makeRow(key) {
    const row = this.blank.content.firstElementChild.cloneNode(true);
    row.dataset.key = key;
    return row;
  }

  /** Put rows where they belong; one that is there already is not touched. */
  arrange() {
    const rows = this.order.map((key) => this.rows.get(key));
    if (this.column !== null) rows.sort((a, b) => this.direction * this.compare(a, b));
    rows.forEach((row, i) => {
      if (this.body.rows[i] !== row) this.body.insertBefore(row, this.body.rows[i] ?? null);
      row.hidden = !row.textContent.toLowerCase().includes(this.wanted);
    });
  }

  compare(a, b) {
    const [one, other] = [a.cells[this.column], b.cells[this.column]];
    if ("value" in one.dataset) return one.dataset.value - other.dataset.value;
    return collator.compare(one.textContent, other.textContent);
  }
}

function fill(element, cell) {
  const kind = element.classList;
  if (kind.contains("curve")) return draw(element, cell);
  if (kind.contains("state")) {
    element.firstElementChild.dataset.state = cell[0];
    write(element.lastElementChild, cell[1]);
    return write(element.firstElementChild, cell[0]);
  }
  if (!kind.contains("number")) return write(element, cell);
  element.dataset.value = cell[1];
  write(element, cell[0]);
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function draw(element, [tx, rx]) {
  element.querySelector(".tx").setAttribute("points", tx);
  element.querySelector(".rx").setAttribute("points", rx);
}

function say(text, isLive) {
  const live = document.getElementById("live");
  write(live, text);
  live.dataset.live = isLive ? "yes" : "no";
}

async function refresh() {
  const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (!response.ok) throw new Error(response.statusText);
  const { version, facts, total, tables: rows } = await response.json();
  // Another daemon may have other tables.
  if (version !== document.documentElement.dataset.version) return location.reload();
  for (const [key, text] of Object.entries(facts)) write(document.querySelector(`[data-fact="${key}"]`), text);
  draw(document.querySelector("[data-total]"), total);
  for (const [key, table] of tables) table.update(rows[key]);
}

let next = null;

/** Refresh the page, again and again while somebody can see it. */
async function keepFresh() {
  clearTimeout(next);
  next = null;
  if (document.hidden) return;
  try {
    await refresh();
    say("live", true);
  } catch {
    say("not reachable, trying again", false);
  }
  clearTimeout(next);
  next = setTimeout(keepFresh, INTERVAL);
}

for (const element of document.querySelectorAll("table[data-table]")) {
  tables.set(element.dataset.table, new Table(element));
}
for (const input of document.querySelectorAll("input[data-filter]")) {
  input.closest("label").hidden = false;
  input.addEventListener("input", () => tables.get(input.dataset.filter).filterBy(input.value));
  tables.get(input.dataset.filter).filterBy(input.value);
}
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input") || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key !== "/" || isTyping) return;
  document.querySelector("input[data-filter]").focus();
  event.preventDefault();
});
document.addEventListener("visibilitychange", keepFresh);
keepFresh();
