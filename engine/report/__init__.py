"""`infercam report`: runs side by side in one self-contained HTML page."""
