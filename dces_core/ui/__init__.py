"""The web side: small helpers that pages share. Imports streamlit and plotly, never torch, umap or sklearn."""
