"""slicer.parameterNodeWrapper: typed attributes that lie in a node of the scene and follow widgets."""

from __future__ import annotations

import types

from slicer_standin.parameters import connectors, serializers, validators, wrapper

PUBLIC = {
    wrapper: ("parameterNodeWrapper", "isParameterNodeWrapper", "SlicerParameterNamePropertyName"),
    serializers: ("Default",),
    validators: ("Choice", "Exclude", "Maximum", "Minimum", "NotNone", "Validator", "WithinRange"),
    connectors: ("Decimals", "GuiConnector", "SingleStep", "parameterNodeGuiConnector"),
}


def parameter_node_module() -> types.ModuleType:
    module = types.ModuleType("slicer.parameterNodeWrapper")
    for source, names in PUBLIC.items():
        for name in names:
            setattr(module, name, getattr(source, name))
    return module
