"""Entry of the dashboard: `streamlit run app.py`."""

from __future__ import annotations

import streamlit as st

from dces_core.ui import gatekeeper, look

st.set_page_config(page_title="DCES Lab", page_icon=look.ICON, layout="wide")
look.style()
gatekeeper.admit()
page = st.navigation(
    {
        "": [
            st.Page("pages/start.py", title="Start", icon=":material/home:", default=True),
            st.Page("pages/launch.py", title="Launch", icon=":material/rocket_launch:", url_path="launch"),
            st.Page("pages/watch.py", title="Watch", icon=":material/monitoring:", url_path="watch"),
            st.Page("pages/curate.py", title="Curate", icon=":material/filter_alt:", url_path="curate"),
            st.Page("pages/tune.py", title="Tune", icon=":material/tune:", url_path="tune"),
            st.Page("pages/cost.py", title="Cost", icon=":material/payments:", url_path="cost"),
        ],
        "Look": [
            st.Page("pages/trajectories.py", title="Trajectories", icon=":material/show_chart:", url_path="trajectories"),
            st.Page("pages/clusters.py", title="Clusters", icon=":material/scatter_plot:", url_path="clusters"),
            st.Page("pages/feedback.py", title="Feedback", icon=":material/cycle:", url_path="feedback"),
            st.Page("pages/point.py", title="Towards one point", icon=":material/center_focus_strong:", url_path="point"),
            st.Page("pages/generations.py", title="Generations", icon=":material/notes:", url_path="generations"),
            st.Page("pages/case.py", title="Case study", icon=":material/menu_book:", url_path="case"),
            st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
            st.Page("pages/ask.py", title="Ask", icon=":material/chat:", url_path="ask"),
            st.Page("pages/diagnose.py", title="Diagnose", icon=":material/stethoscope:", url_path="diagnose"),
        ],
        "Keep": [st.Page("pages/runs.py", title="Runs", icon=":material/folder_open:", url_path="runs")],
    },
    expanded=True,  # all of them: Streamlit folds a long list
)
st.session_state["inside app"] = page.url_path
if page.url_path:  # Start needs no zoom, and shows its words before it loads what reads runs
    from dces_core.ui import state, zoom

    zoom.keep()
    state.pick_run()
page.run()
