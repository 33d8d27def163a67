// The page's side of a session: sends the user's events, shows the session's updates.
// Attributes of elements define their events: data-click, data-change, data-input (while typing) and data-submit name the
// event for the session; data-value is its value. data-keep names attributes that the browser changes by itself.

const TYPING = 250 // milliseconds without a key press after which the input is sent
const PING = 4000 // milliseconds between two pings
const LOST_AFTER = 9000 // milliseconds without a response after which the connection counts as lost
const RETRY = 1000 // milliseconds between two attempts to reach the server again
const STORED = "dicelab-rolls"

let model = null // Panel's, once it is connected
let waiting = [] // events from before the connection
let heard = 0 // when the session last responded
let lost = false
let selected = "" // the id of the span whose details are shown

const $ = (id) => document.getElementById(id)

function send(event, value = null) {
  if (lost) return
  if (model) model.send_msg({event, value})
  else waiting.push({event, value})
}

// --- messages from the session ---

function receive(message) {
  heard = Date.now()
  for (const [id, html] of Object.entries(message.regions ?? {})) if ($(id)) patch($(id), html)
  if (message.tab) showTab(message.tab, false)
  if (message.address) {
    const url = location.pathname + message.address.query
    if (url !== location.pathname + location.search)
      history[message.address.push ? "pushState" : "replaceState"](null, "", url)
  }
  if (message.rolls) sessionStorage.setItem(STORED, JSON.stringify(message.rolls))
  if (message.select !== undefined) selected = message.select
  if (message.say) $("said").textContent = message.say
  if (message.reveal) $(message.reveal)?.scrollIntoView({block: "nearest"})
  for (const group of document.querySelectorAll("[data-roving]")) {
    const items = [...group.querySelectorAll(group.dataset.roving)]
    if (items.length && !items.some((item) => item.tabIndex === 0)) items[0].tabIndex = 0
  }
  document.dispatchEvent(new CustomEvent("patched"))
}

// --- patching: the smallest change that gives an element its new content ---

function patch(element, html) {
  const template = document.createElement("template")
  template.innerHTML = html
  patchChildren(element, template.content)
}

function patchChildren(old, next) {
  const known = new Map()
  for (const child of old.children) if (child.id) known.set(child.id, child)
  let place = old.firstChild
  for (const wanted of [...next.childNodes]) {
    let found = wanted.id ? known.get(wanted.id) : null
    if (!wanted.id && place && !place.id && place.nodeName === wanted.nodeName) found = place
    if (!found || found.nodeName !== wanted.nodeName) {
      old.insertBefore(wanted, place)
    } else {
      if (found === place) place = place.nextSibling
      else old.insertBefore(found, place)
      patchNode(found, wanted)
    }
  }
  while (place) {
    const rest = place.nextSibling
    place.remove()
    place = rest
  }
}

function patchNode(old, next) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue
    return
  }
  if (old.isEqualNode(next)) return
  const kept = new Set((next.dataset?.keep ?? "").split(" ")) // attributes that the browser changes by itself
  for (const {name} of [...old.attributes]) if (!next.hasAttribute(name) && !kept.has(name)) old.removeAttribute(name)
  for (const {name, value} of next.attributes)
    if (old.getAttribute(name) !== value && !(kept.has(name) && old.hasAttribute(name))) old.setAttribute(name, value)
  patchChildren(old, next)
  if (old === document.activeElement) return // the user is editing it
  if (old.matches("input")) {
    if (old.type === "checkbox" || old.type === "radio") old.checked = next.hasAttribute("checked")
    else old.value = next.getAttribute("value") ?? ""
  } else if (old.matches("select")) {
    old.value = next.querySelector("option[selected]")?.value ?? next.options[0]?.value ?? ""
  }
}

// --- events of the user ---

function valueOf(element) {
  return element.type === "checkbox" ? element.checked : element.value
}

document.addEventListener("click", (event) => {
  const target = event.target.closest?.("[data-click], [data-copy]")
  if (!target || target.disabled) return
  if (event.target.closest("a") && (event.ctrlKey || event.metaKey || event.shiftKey)) return // opens in a new tab
  if (target.matches("tr") && String(getSelection())) return // a click that ends a text selection
  if (!target.matches("summary")) event.preventDefault()
  if (target.dataset.copy !== undefined) copy(target)
  else send(target.dataset.click, target.dataset.value ?? null)
})

function copy(button) {
  const text = button.hasAttribute("data-link") ? location.origin + button.dataset.copy : button.dataset.copy
  navigator.clipboard.writeText(text).then(() => ($("said").textContent = "copied"))
  button.dataset.copied = ""
  setTimeout(() => delete button.dataset.copied, 1500)
}

document.addEventListener("change", (event) => {
  const target = event.target.closest?.("[data-change]")
  if (target) send(target.dataset.change, valueOf(target))
})

const timers = new WeakMap()
document.addEventListener("input", (event) => {
  const target = event.target.closest?.("[data-input]")
  if (!target) return
  clearTimeout(timers.get(target))
  timers.set(target, setTimeout(() => send(target.dataset.input, valueOf(target)), TYPING))
})

document.addEventListener("submit", (event) => {
  const form = event.target.closest?.("form[data-submit]")
  if (!form) return
  event.preventDefault()
  if (!model && form.dataset.submit === "roll")
    $("roll-state").innerHTML =
      '<div class="rolling"><progress aria-label="Connecting"></progress><span>Connecting, then rolling …</span></div>'
  send(form.dataset.submit, Object.fromEntries(new FormData(form)))
})

// Arrow keys move within a group; the Tab key reaches only one of its elements.
const STEPS = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}
document.addEventListener("keydown", (event) => {
  const group = event.target.closest?.("[data-roving]")
  if (!group || event.target.matches("input, select")) return
  const items = [...group.querySelectorAll(group.dataset.roving)]
  const at = items.indexOf(event.target)
  const columns = Number(group.dataset.columns ?? 0)
  if (at < 0) return
  let to
  if (event.key === "Home") to = 0
  else if (event.key === "End") to = items.length - 1
  else if (event.key in STEPS) {
    const vertical = event.key === "ArrowDown" || event.key === "ArrowUp"
    to = at + STEPS[event.key] * (vertical && columns ? columns : 1)
  } else return
  event.preventDefault()
  if (to < 0 || to >= items.length) return
  for (const item of items) item.tabIndex = item === items[to] ? 0 : -1
  items[to].focus()
  if (items[to].role === "tab") items[to].click()
})

// --- tabs ---

function showTab(name, tell = true) {
  for (const tab of document.querySelectorAll("#tabs [role=tab]")) {
    const active = tab.id === `tab-${name}`
    tab.setAttribute("aria-selected", String(active))
    tab.tabIndex = active ? 0 : -1
    $(`panel-${tab.id.slice(4)}`).hidden = !active
    if (active) $("tabs").scrollLeft = tab.offsetLeft - $("tabs").offsetLeft - 24 // on a phone the row is wider than the screen
  }
  if (tell) send("tab", name)
}

$("tabs").addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab]")
  if (tab && tab.getAttribute("aria-selected") !== "true") showTab(tab.id.slice(4))
})

window.addEventListener("popstate", () => send("address", location.search))

// --- light and dark: the system's setting, or the user's choice ---

$("theme").addEventListener("click", () => {
  const dark = !isDark()
  document.documentElement.dataset.theme = localStorage.theme = dark ? "dark" : "light"
  labelTheme()
})
const isDark = () =>
  (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark"
const labelTheme = () => $("theme").setAttribute("aria-pressed", String(isDark()))
labelTheme()

// --- the connection ---

function connected(panelModel, panelDocument) {
  model = panelModel
  heard = Date.now()
  model.on("msg:custom", receive)
  panelDocument.on_event("connection_lost", connectionLost)
  let rolls = []
  try {
    rolls = JSON.parse(sessionStorage.getItem(STORED) ?? "[]")
  } catch {} // the stored text is not JSON: ignored
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
  const offset = -new Date().getTimezoneOffset()
  model.send_msg({event: "open", value: {query: location.search, zone, offset, rolls}})
  $("roll-state").replaceChildren() // from here on the session shows whether a die is rolling
  for (const message of waiting) model.send_msg(message)
  waiting = []
  document.body.dataset.connected = ""
  setInterval(() => {
    if (document.hidden || lost) heard = Date.now()
    else if (Date.now() - heard > LOST_AFTER) connectionLost()
    else send("ping")
  }, PING)
}

// The session writes the address. If the connection is lost before that, the tab just chosen is written here.
function writeTab() {
  const query = new URLSearchParams(location.search)
  const tab = document.querySelector("#tabs [aria-selected=true]").id.slice(4)
  if ((query.get("tab") ?? "trace") === tab) return
  const kept = new URLSearchParams(tab === "trace" ? {} : {tab})
  for (const name of ["trace", "range"]) if (query.has(name)) kept.set(name, query.get(name))
  history.replaceState(null, "", `${location.pathname}?${kept}`)
}

function connectionLost() {
  if (lost) return
  lost = true
  writeTab()
  delete document.body.dataset.connected
  $("roll-state").replaceChildren() // the outcome of a roll in progress is unknown
  $("roll").disabled = true
  $("connection").innerHTML =
    '<p role="alert">The connection to the server is lost. The page reconnects by itself as soon as the server answers.</p>'
  const retry = () =>
    fetch("/healthz", {cache: "no-store", signal: AbortSignal.timeout(3000)})
      .then((response) => (response.ok ? location.reload() : setTimeout(retry, RETRY)))
      .catch(() => setTimeout(retry, RETRY))
  setTimeout(retry, RETRY)
}
window.addEventListener("pagehide", () => (lost = true)) // leaving the page is not a lost connection
window.addEventListener("pageshow", (event) => event.persisted && location.reload()) // back to a page whose session ended

window.dicelab = {connected, send, select: (span) => (selected = span), selected: () => selected}
// The address names the tab: shown before the session is connected.
const asked = new URLSearchParams(location.search).get("tab")
if (asked && $(`tab-${CSS.escape(asked)}`)) showTab(asked, false)
