// Package gitops tests what the chart hands to Argo CD, Flux, Prometheus and Grafana, by the libraries that they use themselves: the
// Lua interpreter of Argo CD, the CEL environment and kstatus of Flux, the parser of Prometheus. The objects in testdata have the form
// in which the operator writes them; tests/gitops.rs holds them against the API's types.
package gitops

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const chart = "../../charts/remit/"

// What each tool must say of each object.
var table = map[string]struct {
	argo string
	flux status.Status
	// What Flux says without healthCheckExprs, where it is something else.
	kstatus status.Status
	// Part of the message in Argo CD.
	says string
}{
	"agent-new":                  {argo: "Progressing", flux: status.InProgressStatus},
	"agent-changed":              {argo: "Progressing", flux: status.InProgressStatus},
	"agent-ready":                {argo: "Healthy", flux: status.CurrentStatus, says: "1 identities"},
	"agent-suspended":            {argo: "Suspended", flux: status.CurrentStatus, says: "paused"},
	"agent-conflict":             {argo: "Degraded", flux: status.FailedStatus, says: "elder Agent builder"},
	"agent-issuer-unknown":       {argo: "Progressing", flux: status.InProgressStatus, says: "no configured issuer"},
	"package-new":                {argo: "Progressing", flux: status.InProgressStatus},
	"package-ready":              {argo: "Healthy", flux: status.CurrentStatus},
	"package-in-force":           {argo: "Healthy", flux: status.CurrentStatus, says: "in force"},
	"package-former":             {argo: "Healthy", flux: status.CurrentStatus},
	"package-unsigned":           {argo: "Degraded", flux: status.FailedStatus, says: "signer release"},
	"signer-new":                 {argo: "Progressing", flux: status.InProgressStatus},
	"signer-valid":               {argo: "Healthy", flux: status.CurrentStatus},
	"signer-not-yet":             {argo: "Progressing", flux: status.InProgressStatus, says: "lies ahead"},
	"signer-expired":             {argo: "Degraded", flux: status.FailedStatus, says: "notAfter"},
	"signer-superseded":          {argo: "Healthy", flux: status.CurrentStatus, kstatus: status.FailedStatus, says: "superseded"},
	"signer-compromised":         {argo: "Healthy", flux: status.CurrentStatus, kstatus: status.FailedStatus, says: "compromised"},
	"signer-invalid-and-revoked": {argo: "Degraded", flux: status.FailedStatus, says: "publicKey"},
	"profile-ready":              {argo: "Healthy", flux: status.CurrentStatus},
	"profile-ignored":            {argo: "Degraded", flux: status.FailedStatus, says: "named default"},
	"replay-new":                 {argo: "Progressing", flux: status.InProgressStatus},
	"replay-queued":              {argo: "Progressing", flux: status.InProgressStatus, says: "its turn"},
	"replay-running":             {argo: "Progressing", flux: status.InProgressStatus, says: "being replayed"},
	"replay-passed":              {argo: "Healthy", flux: status.CurrentStatus, says: "pass"},
	"replay-inconclusive":        {argo: "Healthy", flux: status.CurrentStatus, says: "inconclusive"},
	"replay-failed":              {argo: "Degraded", flux: status.FailedStatus, says: "can't be loaded"},
	"rollout-new":                {argo: "Progressing", flux: status.InProgressStatus, says: "not seen"},
	"rollout-changed":            {argo: "Progressing", flux: status.InProgressStatus, says: "not seen"},
	"rollout-no-package":         {argo: "Progressing", flux: status.InProgressStatus, says: "no PolicyPackage"},
	"rollout-healthy":            {argo: "Healthy", flux: status.CurrentStatus, says: "1.0.0"},
	"rollout-completed":          {argo: "Healthy", flux: status.CurrentStatus, says: "1.1.0"},
	"rollout-queued":             {argo: "Progressing", flux: status.InProgressStatus, says: "its replay is under way"},
	"rollout-canary":             {argo: "Progressing", flux: status.InProgressStatus, says: "5 % of sessions"},
	"rollout-inconclusive":       {argo: "Suspended", flux: status.InProgressStatus, says: "12 of 20 decisions are missing"},
	"rollout-paused":             {argo: "Suspended", flux: status.CurrentStatus, says: "while paused"},
	"rollout-paused-waiting":     {argo: "Suspended", flux: status.InProgressStatus, says: "waits"},
	"rollout-refused":            {argo: "Degraded", flux: status.FailedStatus, says: "is refused"},
	"rollout-rolled-back":        {argo: "Degraded", flux: status.FailedStatus, says: "criticalDrift"},
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	bytes, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

func fixtures(t *testing.T) map[string]*unstructured.Unstructured {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*unstructured.Unstructured{}
	for _, path := range paths {
		// As both tools get it: integers are int64.
		json, err := yaml.YAMLToJSONStrict(read(t, path))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(json); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		all[name] = object
		if _, ok := table[name]; !ok {
			t.Errorf("%s: nothing says what its health should be", path)
		}
	}
	for name := range table {
		if all[name] == nil {
			t.Errorf("testdata/%s.yaml is missing", name)
		}
	}
	return all
}

// argo runs the script as Argo CD does (util/lua/lua.go): no libraries but package, base and table, one second, `obj` is the object.
func argo(t *testing.T, object *unstructured.Unstructured) (string, string) {
	t.Helper()
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l.SetContext(ctx)
	l.SetGlobal("obj", value(l, object.Object))
	if err := l.DoString(string(read(t, chart+"gitops/health.lua"))); err != nil {
		t.Fatal(err)
	}
	answer, ok := l.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the script returned %v", l.Get(-1))
	}
	health, message := answer.RawGetString("status"), answer.RawGetString("message")
	if health.Type() != lua.LTString || message.Type() != lua.LTString {
		t.Fatalf("the script returned status %v, message %v", health, message)
	}
	return health.String(), message.String()
}

// value is an object as Argo CD gives it to a script.
func value(l *lua.LState, from any) lua.LValue {
	switch v := from.(type) {
	case bool:
		return lua.LBool(v)
	case int64:
		return lua.LNumber(v)
	case float64:
		return lua.LNumber(v)
	case string:
		return lua.LString(v)
	case []any:
		list := l.NewTable()
		for _, item := range v {
			list.Append(value(l, item))
		}
		return list
	case map[string]any:
		table := l.NewTable()
		for key, item := range v {
			table.RawSetString(key, value(l, item))
		}
		return table
	}
	return lua.LNil
}

func expressions(t *testing.T) map[string]*kustomize.CustomHealthCheck {
	t.Helper()
	var checks []kustomize.CustomHealthCheck
	if err := yaml.UnmarshalStrict(read(t, chart+"gitops/flux.yaml"), &checks); err != nil {
		t.Fatal(err)
	}
	all := map[string]*kustomize.CustomHealthCheck{}
	for i, check := range checks {
		if check.APIVersion != "remit.dev/v1alpha1" || all[check.Kind] != nil {
			t.Errorf("flux.yaml: %s %s", check.APIVersion, check.Kind)
		}
		all[check.Kind] = &checks[i]
	}
	return all
}

func flux(t *testing.T, object *unstructured.Unstructured) status.Status {
	t.Helper()
	check := expressions(t)[object.GetKind()]
	if check == nil {
		t.Fatalf("flux.yaml has no %s", object.GetKind())
	}
	evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
	if err != nil {
		t.Fatal(err)
	}
	result, err := evaluator.Evaluate(context.Background(), object)
	if err != nil {
		t.Fatal(err)
	}
	return result.Status
}

func plain(t *testing.T, object *unstructured.Unstructured) status.Status {
	t.Helper()
	result, err := status.Compute(object)
	if err != nil {
		t.Fatal(err)
	}
	return result.Status
}

func TestHealthIsAsTold(t *testing.T) {
	for name, object := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			want := table[name]
			health, message := argo(t, object)
			if health != want.argo || !strings.Contains(message, want.says) {
				t.Errorf("Argo CD: %s, %q; should be %s with %q", health, message, want.argo, want.says)
			}
			if got := flux(t, object); got != want.flux {
				t.Errorf("Flux: %s, should be %s", got, want.flux)
			}
			if want.kstatus == "" {
				want.kstatus = want.flux
			}
			if got := plain(t, object); got != want.kstatus {
				t.Errorf("kstatus: %s, should be %s", got, want.kstatus)
			}
		})
	}
}

// Whatever an object said of an older generation, it says nothing about this one; and an object without a status is never healthy.
func TestNothingIsHealthyBeforeItWasSeen(t *testing.T) {
	for name, object := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			object.SetGeneration(object.GetGeneration() + 7)
			if health, _ := argo(t, object); health != "Progressing" {
				t.Errorf("Argo CD, other generation: %s", health)
			}
			if got := flux(t, object); got != status.InProgressStatus {
				t.Errorf("Flux, other generation: %s", got)
			}
			unstructured.RemoveNestedField(object.Object, "status")
			if health, _ := argo(t, object); health != "Progressing" {
				t.Errorf("Argo CD, no status: %s", health)
			}
			// The definitions give every object a status with observedGeneration -1 (tests/manifests.rs).
			object.Object["status"] = map[string]any{"observedGeneration": int64(-1)}
			if got := flux(t, object); got != status.InProgressStatus {
				t.Errorf("Flux, never seen: %s", got)
			}
		})
	}
}

// Without conditions nobody says Healthy, whatever the phase.
func TestConditionsDecide(t *testing.T) {
	for name, object := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			unstructured.RemoveNestedField(object.Object, "status", "conditions")
			if health, _ := argo(t, object); health == "Healthy" {
				t.Errorf("Argo CD, no conditions: %s", health)
			}
			if got := flux(t, object); got == status.CurrentStatus {
				t.Errorf("Flux, no conditions: %s", got)
			}
			// What was taken back is told by the phase alone, too.
			if phase, _, _ := unstructured.NestedString(object.Object, "status", "phase"); phase == "Degraded" {
				health, _ := argo(t, object)
				if got := flux(t, object); health != "Degraded" || got != status.FailedStatus {
					t.Errorf("Degraded without conditions: %s, %s", health, got)
				}
			}
		})
	}
}

// Both know every kind that the chart defines.
func TestEveryKindHasAHealthCheck(t *testing.T) {
	paths, err := filepath.Glob("../../crds/remit.dev_*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	template := string(read(t, chart+"templates/gitops.yaml"))
	all := expressions(t)
	for _, path := range paths {
		var definition struct {
			Spec struct {
				Names struct {
					Kind string `json:"kind"`
				} `json:"names"`
			} `json:"spec"`
		}
		if err := yaml.Unmarshal(read(t, path), &definition); err != nil {
			t.Fatal(err)
		}
		kind := definition.Spec.Names.Kind
		if all[kind] == nil {
			t.Errorf("flux.yaml has no %s", kind)
		}
		if !strings.Contains(template, `"`+kind+`"`) {
			t.Errorf("templates/gitops.yaml has no %s", kind)
		}
		if !slices.Contains(kindsOf(fixtures(t)), kind) {
			t.Errorf("testdata has no %s", kind)
		}
	}
}

func kindsOf(objects map[string]*unstructured.Unstructured) []string {
	var kinds []string
	for _, object := range objects {
		kinds = append(kinds, object.GetKind())
	}
	return kinds
}
