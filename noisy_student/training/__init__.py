# SPDX-License-Identifier: Apache-2.0
"""How it is trained: losses, schedule, optimizer, averaging, devices."""
