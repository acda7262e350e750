"""The page that `dvc plots show` fills, with Vega inside: DVC's own loads it from the network, and is empty without.

`make setup` writes it to ``.dvc/plots.html`` and names it in ``.dvc/config.local``, which is not part of the repository.
"""

from pathlib import Path

import vl_convert

PAGE = Path(__file__).resolve().parents[1] / ".dvc" / "plots.html"
VEGA_LITE = "5.8"
"""DVC's charts are written for version 5."""


def plots_page() -> str:
    """HTML with the places that DVC fills: ``refresh_tag`` and ``plot_divs``; without ``scripts``, which are addresses."""
    vega = vl_convert.javascript_bundle(vl_version=VEGA_LITE)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>Plots of DVC</title>
<script>{vega}</script>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


if __name__ == "__main__":
    PAGE.write_text(plots_page(), encoding="utf-8")
