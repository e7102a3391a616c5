"""From run folders, or anyone's CSV, to scaling laws, verdicts and figures; never imports torch."""
