# SPDX-License-Identifier: Apache-2.0
"""What is trained: EfficientNet with stochastic depth."""
