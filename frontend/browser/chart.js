// Charts: show the values of all series at the time under the pointer. The legend below a chart has the latest values.

const shownAt = document.createElement("output")
shownAt.className = "readout"
shownAt.hidden = true
shownAt.setAttribute("aria-hidden", "true")
document.body.append(shownAt)

document.addEventListener("pointermove", (event) => {
  const chart = event.target.closest?.("svg[data-series]")
  shownAt.hidden = !chart
  if (!chart) return
  const {labels, series} = JSON.parse(chart.dataset.series)
  const box = chart.getBoundingClientRect()
  const within = (event.clientX - box.left) / box.width
  const place = Math.round(within * (labels.length - 1))
  if (!labels.length || place < 0 || place >= labels.length) return (shownAt.hidden = true)
  shownAt.textContent = [labels[place], ...series.map(([name, values]) => `${name}: ${values[place] ?? "–"}`)].join("\n")
  const right = event.clientX + 16 + shownAt.offsetWidth > innerWidth
  shownAt.style.left = `${right ? event.clientX - 16 - shownAt.offsetWidth : event.clientX + 16}px`
  shownAt.style.top = `${Math.min(event.clientY + 12, innerHeight - shownAt.offsetHeight - 8)}px`
})
