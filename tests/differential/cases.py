"""The table: every case of every topic."""

from __future__ import annotations

from tests.differential import (
    cases_copyup,
    cases_create,
    cases_features,
    cases_flags,
    cases_links,
    cases_listing,
    cases_metadata,
    cases_nameless,
    cases_open,
    cases_ranges,
    cases_remove,
    cases_rename,
    cases_whiteouts,
    cases_xattrs,
)
from tests.differential.table import Case, Topic

TOPICS: list[Topic] = [
    cases_copyup.TOPIC,
    cases_create.TOPIC,
    cases_nameless.TOPIC,
    cases_open.TOPIC,
    cases_ranges.TOPIC,
    cases_metadata.TOPIC,
    cases_xattrs.TOPIC,
    cases_flags.TOPIC,
    cases_links.TOPIC,
    cases_rename.TOPIC,
    cases_remove.TOPIC,
    cases_whiteouts.TOPIC,
    cases_listing.TOPIC,
    cases_features.TOPIC,
]
TABLE: list[Case] = [case for topic in TOPICS for case in topic.cases]
