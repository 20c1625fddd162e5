// Zoom outlives rebuilding. Streamlit (1.67) makes a new plotly chart whenever its figure changes, so plotly's own `uirevision`
// finds nothing to keep; here it means the same across charts: a new one takes over the zoom of the last one of its `uirevision`.
export default function () {
  if (window.dcesZoom) return; // called at every run of the page
  const kept = (window.dcesZoom = new Map()); // uirevision -> {axis: [from, to]}
  const known = new WeakSet();

  function keep(chart, whole, change) {
    const axes = kept.get(chart.layout.uirevision) ?? {};
    for (const key of Object.keys(change ?? {})) {
      const name = /^[xy]axis\d*(?=\.(range|autorange))/.exec(key)?.[0];
      if (!name) continue;
      const { autorange, range } = chart.layout[name];
      if (autorange || String(range) === whole[name]) delete axes[name];
      else axes[name] = [...range];
    }
    kept.set(chart.layout.uirevision, axes);
  }

  function adopt(chart) {
    known.add(chart);
    const names = Object.keys(chart.layout).filter((name) => /^[xy]axis\d*$/.test(name));
    const whole = Object.fromEntries(names.map((name) => [name, String(chart.layout[name].range)]));
    const axes = Object.entries(kept.get(chart.layout.uirevision) ?? {}).filter(([name]) => name in whole);
    if (axes.length) {
      const zoomed = axes.map(([name, range]) => [name, { ...chart.layout[name], range: [...range], autorange: false }]);
      chart.layout = { ...chart.layout, ...Object.fromEntries(zoomed) };
      chart.emit("plotly_relayout", {}); // Streamlit takes the layout from the chart and draws it again
    }
    chart.on("plotly_relayout", (change) => keep(chart, whole, change));
  }

  // A chart that Streamlit listens to is finished.
  const ready = (chart) => chart.layout?.uirevision && chart._fullLayout && chart._ev?.listenerCount("plotly_relayout");
  setInterval(() => {
    for (const chart of document.querySelectorAll(".js-plotly-plot")) if (!known.has(chart) && ready(chart)) adopt(chart);
  }, 100);
}
