# SPDX-License-Identifier: Apache-2.0
"""From a teacher's predictions to a data set: predict, store, select, read."""
