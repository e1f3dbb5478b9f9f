"""xarch's conformance kit over everything this plugin brings."""

from xarch_rows.family import Rows

from xarch import testing


class TestFamily(testing.FamilyConformance):
    family = "rows"


class TestSource(testing.SourceConformance):
    def make_ref(self, folder):
        return Rows().tiny_teacher(folder)


class TestTarget(testing.TargetConformance):
    adapter = "rows-resnet"
    local = False


class TestData(testing.DataConformance):
    ref = "rows:wine"
    options = {"noise": 0.1}


class TestMetric(testing.MetricConformance):
    metric = "row-accuracy"
    family = "rows"


class TestMethod(testing.MethodConformance):
    method = "rows-kd"
