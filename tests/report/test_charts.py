"""Charts: logarithmic compute, and the ground of an interval."""

from __future__ import annotations

import re

from tessera.report.charts import Band, Series, legend, line_chart


def test_powers_of_ten_stand_equally_far_apart_on_a_logarithmic_axis() -> None:
    chart = line_chart([Series("runs", [1e10, 1e12, 1e14], [4.0, 3.0, 2.0], points=True)], "FLOPs", "loss", log_x=True)
    at = [float(x) for x in re.findall(r'cx="([\d.]+)"', chart)]
    assert len(at) == 3 and abs((at[1] - at[0]) - (at[2] - at[1])) < 0.2
    for tick in ("10G", "1T", "100T"):
        assert f">{tick}</text>" in chart


def test_a_band_widens_the_axes_and_is_closed() -> None:
    line = [Series("held out", [0.0, 10.0], [2.0, 1.0])]
    band = Band("90 %", [5.0, 10.0], [0.5, 0.4], [3.0, 2.5])
    drawn = re.search(r'<path class="band" d="([^"]+)Z"/>', line_chart(line, "tokens", "loss", bands=[band]))
    assert drawn and drawn[1].count("L") == 3
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn[1])]
    assert all(0 < y < 340 for y in heights)
    assert '<i class="band"></i>90 %' in legend([*line, band])
