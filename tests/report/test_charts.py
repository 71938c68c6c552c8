"""Charts: logarithmic compute, and the ground of an interval."""

from __future__ import annotations

import re

from tessera.report.charts import Band, Series, legend, line_chart, short


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


def test_a_long_tick_leaves_room_for_the_name_of_its_axis() -> None:
    chart = line_chart([Series("rate", [0.0, 1.0], [0.0, 0.0051])], "tokens", "learning rate", height=230)
    ticks = re.findall(r'<text x="(\d+)" y="[\d.]+" text-anchor="end">([^<]+)</text>', chart)
    name = re.search(r"translate\((\d+) ", chart)
    assert name and ("0.004" in [tick for _, tick in ticks])
    # At 12 pixels, a digit is about 7.5 wide, and the name reaches 3 below its line.
    assert all(int(at) - 7.5 * len(tick) > int(name[1]) + 3 for at, tick in ticks)


def test_ticks_over_many_decades_do_not_crowd_and_small_numbers_stay_short() -> None:
    chart = line_chart([Series("mismatch", [1.0, 2.0], [2e-7, 1e-3])], "step", "nats", log_y=True)
    ticks = re.findall(r'text-anchor="end">([^<]+)</text>', chart)
    assert ticks == ["1e-6", "1e-5", "1e-4", "0.001"]
    assert [short(value) for value in (0.05, 2.5e-4, 1e-3, -4e-7, 0.0)] == ["0.05", "2.5e-4", "0.001", "-4e-7", "0"]
