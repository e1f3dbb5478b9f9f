"""Tabular rows as a family of xarch. Nothing heavy is imported here: names are loaded on first use."""

from xarch import hookimpl


@hookimpl
def xarch_register(registry):
    """Everything this plugin brings."""
    registry.family("rows", load="xarch_rows.family:Rows", summary="classifiers of table rows")
    registry.source("rows", load="xarch_rows.source:RowSource", produces="rows", summary="an MLP: rows:FILE")
    target = {"accepts": ["rows"], "profiles": ["cpu"], "summary": "residual network over rows"}
    registry.target("rows-resnet", load="xarch_rows.target:ResNetTarget", **target)
    registry.data("rows", load="xarch_rows.data:TableData", summary="tables of scikit-learn: rows:digits, rows:wine")
    registry.metric("row-accuracy", load="xarch_rows.metric:Accuracy", accepts=["rows"], summary="share of right rows")
    registry.method("rows-kd", load="xarch_rows:method.yaml", families=["rows"], summary="logits, exits and labels")
