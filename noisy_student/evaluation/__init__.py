# SPDX-License-Identifier: Apache-2.0
"""How good it is: accuracy on every image of the evaluation set."""
