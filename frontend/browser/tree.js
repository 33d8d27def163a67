// The waterfall in the browser: collapse and expand, search, zoom, the minimap, and the keyboard of a tree grid.
// https://www.w3.org/WAI/ARIA/apg/patterns/treegrid/

const {send} = window.dicelab

const collapsed = new Map() // of each trace: the ids of the spans whose children are hidden
const of = (grid) => collapsed.get(grid.dataset.trace) ?? collapsed.set(grid.dataset.trace, new Set()).get(grid.dataset.trace)
const rowsOf = (grid) => [...grid.querySelectorAll("tbody > tr")]
const level = (row) => Number(row.getAttribute("aria-level"))
const shown = (grid) => rowsOf(grid).filter((row) => !row.hidden)

function arrange(grid) {
  const closed = of(grid)
  const rows = rowsOf(grid)
  const words = (document.querySelector(`[data-search="${grid.id}"]`)?.value ?? "").trim().toLowerCase()
  let hiddenBelow = Infinity
  let found = 0
  for (const row of rows) {
    const depth = level(row)
    if (depth <= hiddenBelow) hiddenBelow = Infinity
    row.hidden = depth > hiddenBelow
    if (row.hasAttribute("aria-expanded")) {
      const open = !closed.has(row.dataset.span)
      row.setAttribute("aria-expanded", String(open))
      if (!open && !row.hidden) hiddenBelow = depth
    }
    const hit = words !== "" && row.dataset.text.includes(words)
    row.classList.toggle("hit", hit)
    row.classList.toggle("miss", words !== "" && !hit)
    found += hit
  }
  const count = document.querySelector(`[data-found="${grid.id}"]`)
  if (count) count.textContent = words ? `${found} of ${rows.length} spans match` : ""
  if (!shown(grid).some((row) => row.tabIndex === 0)) {
    const first = shown(grid).find((row) => row.getAttribute("aria-selected") === "true") ?? shown(grid)[0]
    for (const row of rows) row.tabIndex = row === first ? 0 : -1
  }
  follow(grid)
}

function toggle(grid, row, open) {
  if (!row.hasAttribute("aria-expanded")) return
  const closed = of(grid)
  const close = open === undefined ? !closed.has(row.dataset.span) : !open
  closed[close ? "add" : "delete"](row.dataset.span)
  arrange(grid)
}

function focusRow(grid, row) {
  if (!row) return
  for (const other of rowsOf(grid)) other.tabIndex = other === row ? 0 : -1
  row.focus()
}

function select(grid, row) {
  window.dicelab.select(row.dataset.span)
  markSelected()
  send("trace.select", {trace: grid.dataset.trace, span: row.dataset.span})
}

function markSelected() {
  const span = window.dicelab.selected()
  for (const row of document.querySelectorAll("table.waterfall tbody > tr"))
    row.setAttribute("aria-selected", String(row.dataset.span === span))
}

const parent = (row) => {
  let above = row.previousElementSibling
  while (above && level(above) >= level(row)) above = above.previousElementSibling
  return above
}

const KEYS = {
  ArrowDown: (grid, row) => focusRow(grid, shown(grid)[shown(grid).indexOf(row) + 1]),
  ArrowUp: (grid, row) => focusRow(grid, shown(grid)[shown(grid).indexOf(row) - 1]),
  Home: (grid) => focusRow(grid, shown(grid)[0]),
  End: (grid) => focusRow(grid, shown(grid).at(-1)),
  PageDown: (grid, row) => focusRow(grid, shown(grid)[Math.min(shown(grid).indexOf(row) + 15, shown(grid).length - 1)]),
  PageUp: (grid, row) => focusRow(grid, shown(grid)[Math.max(shown(grid).indexOf(row) - 15, 0)]),
  ArrowRight: (grid, row) =>
    row.getAttribute("aria-expanded") === "true" ? focusRow(grid, row.nextElementSibling) : toggle(grid, row, true),
  ArrowLeft: (grid, row) =>
    row.getAttribute("aria-expanded") === "true" ? toggle(grid, row, false) : focusRow(grid, parent(row)),
  Enter: select,
  " ": select,
}

document.addEventListener("keydown", (event) => {
  const row = event.target.closest?.("table.waterfall tbody > tr")
  if (row && event.target === row && event.key in KEYS && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault()
    KEYS[event.key](row.closest("table"), row)
  }
  const search = event.target.closest?.("[data-search]")
  if (search && event.key === "Enter") {
    const grid = document.getElementById(search.dataset.search)
    focusRow(grid, shown(grid).find((found) => found.classList.contains("hit")))
  }
})

document.addEventListener("click", (event) => {
  const row = event.target.closest?.("table.waterfall tbody > tr")
  if (row) {
    const grid = row.closest("table")
    if (event.target.closest(".twist")) return toggle(grid, row)
    focusRow(grid, row)
    return select(grid, row)
  }
  const all = event.target.closest?.("[data-expand]")
  if (!all) return
  const grid = document.getElementById(all.dataset.grid)
  const closed = of(grid)
  closed.clear()
  if (all.dataset.expand === "none")
    for (const each of rowsOf(grid)) if (each.hasAttribute("aria-expanded") && level(each) > 1) closed.add(each.dataset.span)
  arrange(grid)
})

document.addEventListener("input", (event) => {
  const search = event.target.closest?.("[data-search]")
  if (search) arrange(document.getElementById(search.dataset.search))
})

// --- zoom: a drag over the time axis or the minimap; the bars are laid out by two variables of the grid ---

function zoom(grid, from, to) {
  const wide = to - from >= 0.999
  grid.style.setProperty("--from", wide ? 0 : from)
  grid.style.setProperty("--scale", wide ? 1 : 1 / Math.max(to - from, 1e-4))
  const total = Number(grid.dataset.total)
  const axis = grid.querySelector(".axis")
  for (const [place, tick] of [...axis.querySelectorAll(".tick")].entries())
    tick.textContent = duration(((wide ? 0 : from) + (place / 4) * (wide ? 1 : to - from)) * total)
  const reset = document.querySelector(`[data-zoom-reset="${grid.id}"]`)
  if (reset) reset.hidden = wide
  follow(grid)
}

// As model.duration_text writes it.
function duration(nanoseconds) {
  if (nanoseconds < 0.5) return "0"
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]])
    if (nanoseconds >= size) return `${Number((nanoseconds / size).toPrecision(3))} ${unit}`
  return `${Math.round(nanoseconds)} ns`
}

let drag = null
document.addEventListener("pointerdown", (event) => {
  const area = event.target.closest?.(".axis, .minimap")
  if (!area || event.button) return
  const grid = document.getElementById(area.dataset.grid)
  drag = {area, grid, from: event.clientX}
  area.setPointerCapture(event.pointerId)
})
document.addEventListener("pointerup", (event) => {
  if (!drag) return
  const {area, grid, from} = drag
  drag = null
  const box = area.getBoundingClientRect()
  const at = (x) => Math.min(1, Math.max(0, (x - box.left) / box.width))
  const [left, right] = [at(Math.min(from, event.clientX)), at(Math.max(from, event.clientX))]
  if (right - left > 0.005) {
    const start = area.matches(".axis") ? Number(grid.style.getPropertyValue("--from") || 0) : 0
    const width = area.matches(".axis") ? 1 / Number(grid.style.getPropertyValue("--scale") || 1) : 1
    zoom(grid, start + left * width, start + right * width)
  } else if (area.matches(".minimap")) {
    const place = (event.clientY - box.top) / box.height
    const scroller = grid.parentElement
    scroller.scrollTop = place * scroller.scrollHeight - scroller.clientHeight / 2
  }
})
document.addEventListener("dblclick", (event) => {
  const area = event.target.closest?.(".axis, .minimap")
  if (area) zoom(document.getElementById(area.dataset.grid), 0, 1)
})
document.addEventListener("click", (event) => {
  const reset = event.target.closest?.("[data-zoom-reset]")
  if (reset) zoom(document.getElementById(reset.dataset.zoomReset), 0, 1)
  const span = event.target.closest?.("[data-zoom-to]")
  if (span) {
    const row = document.querySelector(`tr[data-span="${CSS.escape(span.dataset.zoomTo)}"]`)
    const left = Number(row.style.getPropertyValue("--left"))
    const width = Number(row.style.getPropertyValue("--width"))
    zoom(row.closest("table"), Math.max(0, left - width * 0.05), Math.min(1, left + width * 1.05))
  }
})

// The minimap shows which part of the waterfall is visible.
function follow(grid) {
  const sight = document.querySelector(`.minimap[data-grid="${grid.id}"] .sight`)
  if (!sight) return
  const scroller = grid.parentElement
  const from = Number(grid.style.getPropertyValue("--from") || 0)
  const scale = Number(grid.style.getPropertyValue("--scale") || 1)
  sight.style.top = `${(100 * scroller.scrollTop) / scroller.scrollHeight}%`
  sight.style.height = `${(100 * scroller.clientHeight) / scroller.scrollHeight}%`
  sight.style.left = `${100 * from}%`
  sight.style.width = `${100 / scale}%`
}
document.addEventListener("scroll", (event) => {
  const grid = event.target.querySelector?.(":scope > table.waterfall")
  if (grid) follow(grid)
}, true)

document.addEventListener("patched", () => {
  markSelected()
  for (const grid of document.querySelectorAll("table.waterfall")) {
    if (grid.dataset.seen !== grid.dataset.trace) zoom(grid, 0, 1) // another trace than before
    grid.dataset.seen = grid.dataset.trace
    arrange(grid)
  }
})
