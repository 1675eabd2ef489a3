package gitops

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

type dashboard struct {
	Title      string `json:"title"`
	Templating struct {
		List []struct {
			Name string `json:"name"`
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID      int    `json:"id"`
		Type    string `json:"type"`
		Title   string `json:"title"`
		GridPos struct {
			H, W, X, Y int
		} `json:"gridPos"`
		Targets []struct {
			Expr         string `json:"expr"`
			LegendFormat string `json:"legendFormat"`
		} `json:"targets"`
	} `json:"panels"`
}

type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []struct {
			Alert       string            `json:"alert"`
			Expr        string            `json:"expr"`
			For         string            `json:"for,omitempty"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"rules"`
	} `json:"groups"`
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal(read(t, chart+"dashboards/remit.json"), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func readRules(t *testing.T) rules {
	t.Helper()
	var r rules
	if err := yaml.UnmarshalStrict(read(t, chart+"dashboards/rules.yaml"), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Every expression, by where it stands. Grafana's variables are what they would be.
func queries(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$job", "remit")
	for _, panel := range readDashboard(t).Panels {
		for _, target := range panel.Targets {
			all["panel "+panel.Title+" "+target.LegendFormat] = variables.Replace(target.Expr)
		}
	}
	for _, group := range readRules(t).Groups {
		for _, rule := range group.Rules {
			all["alert "+rule.Alert] = rule.Expr
		}
	}
	return all
}

func parse(t *testing.T, where, query string) parser.Expr {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		t.Fatalf("%s: %s: %v", where, query, err)
	}
	return expr
}

// What Prometheus reads is what tests/gitops.rs finds in the same text by a pattern, and holds against a running operator.
func TestQueriesAreOnesThatPrometheusTakes(t *testing.T) {
	pattern := regexp.MustCompile(`\bremit_[a-z_]+`)
	all := queries(t)
	if len(all) < 30 {
		t.Errorf("only %d queries", len(all))
	}
	for where, query := range all {
		if strings.Contains(query, "$") {
			t.Errorf("%s: a variable is left: %s", where, query)
		}
		var names []string
		counters := map[string]bool{}
		parser.Inspect(parse(t, where, query), func(node parser.Node, path []parser.Node) error {
			selector, ok := node.(*parser.VectorSelector)
			if !ok {
				return nil
			}
			names = append(names, selector.Name)
			ranged := false
			for _, above := range path {
				if call, ok := above.(*parser.Call); ok && slices.Contains([]string{"rate", "increase"}, call.Func.Name) {
					ranged = true
				}
			}
			counters[selector.Name] = ranged
			for _, m := range selector.LabelMatchers {
				if m.Name == labels.MetricName {
					continue
				}
				if m.Type != labels.MatchNotEqual && m.Matches("") {
					t.Errorf("%s: %s takes what has no label %s", where, selector.Name, m.Name)
				}
			}
			return nil
		})
		if len(names) == 0 {
			t.Errorf("%s asks for nothing", where)
		}
		// A counter is only ever looked at through its growth, and nothing else is.
		for name, ranged := range counters {
			counter := strings.HasSuffix(name, "_total") || strings.HasSuffix(name, "_bucket")
			if counter != ranged {
				t.Errorf("%s: %s, through rate or increase: %v", where, name, ranged)
			}
		}
		found := pattern.FindAllString(query, -1)
		slices.Sort(found)
		slices.Sort(names)
		if !slices.Equal(found, names) {
			t.Errorf("%s: the parser sees %v, the pattern %v", where, names, found)
		}
	}
}

func TestDashboardIsWhole(t *testing.T) {
	d := readDashboard(t)
	ids := map[int]string{}
	cells := map[[2]int]string{}
	for _, panel := range d.Panels {
		if before, twice := ids[panel.ID]; twice {
			t.Errorf("%q and %q have one id", before, panel.Title)
		}
		ids[panel.ID] = panel.Title
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("%q shows nothing", panel.Title)
		}
		for x := panel.GridPos.X; x < panel.GridPos.X+panel.GridPos.W; x++ {
			for y := panel.GridPos.Y; y < panel.GridPos.Y+panel.GridPos.H; y++ {
				if before := cells[[2]int{x, y}]; before != "" || x >= 24 {
					t.Fatalf("%q lies on %q or beyond the edge", panel.Title, before)
				}
				cells[[2]int{x, y}] = panel.Title
			}
		}
	}
	var variables []string
	for _, variable := range d.Templating.List {
		variables = append(variables, variable.Name)
	}
	if !slices.Equal(variables, []string{"datasource", "job"}) {
		t.Errorf("variables: %v", variables)
	}
}

func TestAlertsSayWhatTheyMean(t *testing.T) {
	seen := map[string]bool{}
	for _, group := range readRules(t).Groups {
		for _, rule := range group.Rules {
			if seen[rule.Alert] || !strings.HasPrefix(rule.Alert, "Remit") {
				t.Errorf("%q", rule.Alert)
			}
			seen[rule.Alert] = true
			if !slices.Contains([]string{"critical", "warning", "info"}, rule.Labels["severity"]) {
				t.Errorf("%s: severity %q", rule.Alert, rule.Labels["severity"])
			}
			if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
				t.Errorf("%s: summary and description", rule.Alert)
			}
			if rule.For != "" {
				if _, err := time.ParseDuration(rule.For); err != nil {
					t.Errorf("%s: %v", rule.Alert, err)
				}
			}
			// Text is filled from the result's labels: an aggregation must have kept them.
			expr := parse(t, rule.Alert, rule.Expr)
			for _, match := range regexp.MustCompile(`\$labels\.([a-z]+)`).FindAllStringSubmatch(rule.Annotations["summary"], -1) {
				if !strings.Contains(expr.String(), match[1]) {
					t.Errorf("%s: no label %s", rule.Alert, match[1])
				}
			}
			// An alert is a comparison: without one it fires whenever there is a sample.
			if !compares(expr) {
				t.Errorf("%s: compares with nothing: %s", rule.Alert, rule.Expr)
			}
		}
	}
}

func compares(expr parser.Expr) bool {
	binary, ok := expr.(*parser.BinaryExpr)
	if !ok {
		return false
	}
	if binary.Op == parser.LOR {
		return compares(binary.LHS) && compares(binary.RHS)
	}
	return binary.Op.IsComparisonOperator()
}
