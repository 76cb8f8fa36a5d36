"""Importer of KuaiRand (Pure, 1K, 27K): impressions of a video app, some of them random, with all signals of users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.report import Report
from nextitem.data.importers.tables import (
    collect_rows,
    finite_number,
    scan_text,
    usable_rows,
    write_lazily,
)

_DURATIONS = ("play_time_ms", "profile_stay_time", "comment_stay_time")
# The click is first: rankers learn the first label by default.
_SIGNALS = (
    "is_click",
    "long_view",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "is_profile_enter",
    *_DURATIONS,
)
_TIME_DIGITS = 10**13  # milliseconds since 1970 have 13 digits until the year 2286
_VIDEO_FEATURES = {
    "author_id": "categorical",
    "video_type": "categorical",
    "upload_type": "categorical",
    "music_id": "categorical",
    "music_type": "categorical",
    "tags": "categorical-list",
    "video_duration": "numeric",
    "server_width": "numeric",
    "server_height": "numeric",
}
_USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")


def import_pure(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import KuaiRand-Pure, and return the settings of dataset.toml."""
    return _import(archive, folder, report, version="pure")


def import_1k(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import KuaiRand-1K, and return the settings of dataset.toml."""
    return _import(archive, folder, report, version="1k")


def import_27k(archive: Archive, folder: Path, report: Report, *, name: str) -> dict[str, Any]:
    """Import KuaiRand-27K, whose files are in parts, and return the settings of dataset.toml."""
    return _import(archive, folder, report, version="27k")


def _import(archive: Archive, folder: Path, report: Report, *, version: str) -> dict[str, Any]:
    """Write every row of the logs as an impression, and the clicked rows as interactions too.

    Rows of one user at one time were shown together: their impression_id is the user's number followed by the time.
    """
    _write_impressions(archive, folder, report, version)
    impressions = pl.scan_parquet(folder / "impressions.parquet")
    clicks = impressions.filter(pl.col("is_click") > 0).select("user_id", "item_id", "timestamp", "tab")
    clicks.sink_parquet(folder / "interactions.parquet", compression="zstd")
    user_features = _write_users(archive, folder, version)
    settings: dict[str, Any] = {
        "repeats": False,
        "interactions": {"context": {"tab": "categorical"}},
        "users": {"features": user_features},
        "impressions": {
            "labels": list(_SIGNALS),
            "positive": dict.fromkeys(_DURATIONS, "> 0"),
            "context": {"tab": "categorical"},
        },
    }
    videos = archive.get(f"video_features_basic_{version}.csv")
    if videos is None:
        report.note(f"no video_features_basic_{version}.csv was given: videos have no features")
    else:
        _write_videos(archive, videos, folder, report)
        settings["items"] = {"text": "{tags}", "features": _VIDEO_FEATURES, "released": "upload_dt"}
    if archive.find(f"video_features_statistic_{version}*.csv"):
        report.note("video_features_statistic is left out: its means over the month of the log contain the labels")
    return settings


def _write_impressions(archive: Archive, folder: Path, report: Report, version: str) -> None:
    """Write impressions.parquet from the standard logs and the log of random exposures."""
    random_logs = archive.find(f"log_random_*_{version}*.csv")
    logs = archive.find(f"log_standard_*_{version}*.csv") + random_logs
    if not random_logs:
        report.note("no log_random file was given: there are no random exposures")
    parts = []
    for number, log in enumerate(logs):
        archive.log(log.name)
        parts.append(archive.scratch / f"log-{number}.parquet")
        _write_part(archive, log, parts[-1], report)
    pl.concat([pl.scan_parquet(part) for part in parts]).sink_parquet(
        folder / "impressions.parquet", compression="zstd"
    )


def _write_part(archive: Archive, log: Member, part: Path, report: Report) -> None:
    """Write the rows of one log to the Parquet file `part`."""
    required = ["user_id", "video_id", "time_ms", "tab", "is_rand", *_SIGNALS]
    with archive.file(log) as file:
        whole = {name: pl.col(name).cast(pl.Int64, strict=False) for name in ("user_id", "time_ms", *_SIGNALS)}
        frame = scan_text(file, log, columns=required).select(
            (whole["user_id"] * _TIME_DIGITS + whole["time_ms"]).alias("impression_id"),
            "user_id",
            pl.col("video_id").alias("item_id"),
            whole["time_ms"].alias("timestamp"),
            pl.when(pl.col("is_rand") == "1").then(pl.lit("random")).otherwise(pl.lit("standard")).alias("policy"),
            "tab",
            *(whole[name].alias(name) for name in _SIGNALS),
        )
        missing_values = [pl.col(name).is_null() for name in ("impression_id", "item_id", "is_click")]
        what = f"rows of {log.name} without user, video, time or is_click"
        write_lazily(usable_rows(frame, pl.any_horizontal(missing_values), report, what=what, member=log), part, log)


def _write_users(archive: Archive, folder: Path, version: str) -> dict[str, str]:
    """Write users.parquet, and return the type of every feature."""
    member = archive.require(f"user_features_{version}.csv")
    with archive.file(member) as file:
        table = collect_rows(scan_text(file, member, columns=["user_id"]), member)
    numbers = [name for name in _USER_NUMBERS if name in table.columns]
    table = table.with_columns(finite_number(pl.col(name)).alias(name) for name in numbers)
    table.unique("user_id", keep="first", maintain_order=True).write_parquet(folder / "users.parquet")
    return {name: "numeric" if name in numbers else "categorical" for name in table.columns if name != "user_id"}


def _write_videos(archive: Archive, member: Member, folder: Path, report: Report) -> None:
    """Write items.parquet: all described videos, and a row of nulls for each shown video without a description."""
    descriptions = archive.scratch / "videos.parquet"
    with archive.file(member) as file:
        source = ["video_id", "upload_dt", "tag", *(name for name in _VIDEO_FEATURES if name != "tags")]
        numbers = [name for name, kind in _VIDEO_FEATURES.items() if kind == "numeric"]
        videos = scan_text(file, member, columns=source).select(
            pl.col("video_id").alias("item_id"),
            pl.col("upload_dt").str.to_date("%Y-%m-%d", strict=False),
            pl.col("tag").str.split(",").alias("tags"),
            *(finite_number(pl.col(name)).alias(name) if name in numbers else pl.col(name) for name in source[3:]),
        )
        write_lazily(videos.filter(pl.col("item_id").is_not_null()), descriptions, member)
    # The files are too large for a join of all columns: only ids are compared.
    rows = pl.scan_parquet(descriptions)
    hashes = rows.select(pl.len().alias("rows"), pl.col("item_id").hash(seed=0).n_unique().alias("ids"))
    counts = hashes.collect(engine="streaming")
    num_repeated = int(counts["rows"][0] - counts["ids"][0])
    if num_repeated:
        report.note_left_out(num_repeated, f"further descriptions of a video in {member.name}")
        rows = rows.unique("item_id", keep="first", maintain_order=True)
    shown_ids = pl.scan_parquet(folder / "impressions.parquet").select(pl.col("item_id").unique())
    undescribed_ids = shown_ids.join(rows.select("item_id"), on="item_id", how="anti").collect(engine="streaming")
    if undescribed_ids.height:
        report.note(f"{undescribed_ids.height:,} videos that were shown are not described in {member.name}")
    table = pl.concat([rows, undescribed_ids.sort("item_id").lazy()], how="diagonal")
    table.sink_parquet(folder / "items.parquet", compression="zstd")
