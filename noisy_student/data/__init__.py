# SPDX-License-Identifier: Apache-2.0
"""From files to batches: sources, preprocessing, RandAugment, pipelines."""
