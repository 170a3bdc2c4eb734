# SPDX-License-Identifier: Apache-2.0
"""`report.html`: facts of a run, figures made of them, and the page."""
