# SPDX-License-Identifier: Apache-2.0
"""What people take away from a run: predictions, features, exported models."""
