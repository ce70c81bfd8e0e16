//! What other pods mean for a pod's place (C8.2): spreading over topologies, and affinity to pods and from them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{PodAffinityTerm, PodSpec, TopologySpreadConstraint};
use stoker_model::selector::{Labels, Selector};

use super::filters::{Refusal, matches_affinity, tolerates_all};
use super::nodes::{About, NodeState};

/// Labels of namespaces, for terms that select some.
pub(super) type Namespaces = BTreeMap<String, Labels>;

const SPREAD: &str = "node(s) didn't match pod topology spread constraints";
const SPREAD_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// A place in a topology: label and value.
type Domain = (String, String);

/// What a pod asks of its place because of other pods, counted once for all nodes.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    spread: Vec<Spread>,
    /// Where a pod is that forbids this one.
    forbidden: BTreeSet<Domain>,
    /// For each term of anti-affinity, where a pod is that it means.
    apart: BTreeSet<Domain>,
    /// For each term of affinity its label, and where all terms' pods are.
    together: Vec<(String, BTreeSet<String>)>,
    /// Points for places, of preferred terms.
    preferred: BTreeMap<Domain, i64>,
}

#[derive(Debug)]
struct Spread {
    key: String,
    hard: bool,
    max_skew: i64,
    min: i64,
    own: i64,
    counts: BTreeMap<String, i64>,
}

impl Surroundings {
    /// Looks around for a pod.
    pub(super) fn of(spec: &PodSpec, about: &About, nodes: &[&NodeState], namespaces: &Namespaces) -> Self {
        let mut found = Self {
            spread: spec.topology_spread_constraints.iter().flatten().map(|c| spread(c, spec, about, nodes)).collect(),
            ..Self::default()
        };
        let affinity = spec.affinity.as_ref();
        let with = affinity.and_then(|all| all.pod_affinity.as_ref());
        let without = affinity.and_then(|all| all.pod_anti_affinity.as_ref());
        let required = with.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref());
        let required: Vec<Term<'_>> = required.into_iter().flatten().map(|term| Term::of(term, about)).collect();
        let apart = without.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref());
        let apart: Vec<Term<'_>> = apart.into_iter().flatten().map(|term| Term::of(term, about)).collect();
        let mut wishes: Vec<(Term<'_>, i64)> = Vec::new();
        for (list, sign) in [
            (with.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()), 1),
            (without.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()), -1),
        ] {
            let terms = list.into_iter().flatten();
            wishes.extend(terms.map(|w| (Term::of(&w.pod_affinity_term, about), sign * i64::from(w.weight))));
        }
        let mut places: Vec<BTreeSet<String>> = required.iter().map(|_| BTreeSet::new()).collect();
        for node in nodes {
            let domain = |key: &str| node.labels.get(key).map(|value| (key.to_owned(), value.clone()));
            for other in node.pods.values().map(|load| &load.about) {
                for term in other.anti_affinity.iter().map(|term| Term::of(term, other)) {
                    if term.matches(about, namespaces) {
                        found.forbidden.extend(domain(term.key));
                    }
                }
                for term in apart.iter().filter(|term| term.matches(other, namespaces)) {
                    found.apart.extend(domain(term.key));
                }
                // Upstream counts only pods that all terms mean.
                if !required.is_empty() && required.iter().all(|term| term.matches(other, namespaces)) {
                    for (term, places) in required.iter().zip(&mut places) {
                        places.extend(node.labels.get(term.key).cloned());
                    }
                }
                for (term, weight) in wishes.iter().filter(|(term, _)| term.matches(other, namespaces)) {
                    if let Some(domain) = domain(term.key) {
                        *found.preferred.entry(domain).or_default() += weight;
                    }
                }
            }
        }
        // The first of a group that wants to be together has nobody to go to.
        let is_first =
            places.iter().all(BTreeSet::is_empty) && required.iter().all(|term| term.matches(about, namespaces));
        if is_first {
            for (term, places) in required.iter().zip(&mut places) {
                places.extend(nodes.iter().filter_map(|node| node.labels.get(term.key).cloned()));
            }
        }
        found.together = required.iter().map(|term| term.key.to_owned()).zip(places).collect();
        found
    }

    /// Why not that node.
    pub(super) fn refusal(&self, node: &NodeState) -> Option<Refusal> {
        let refuse = |why: &str, resolvable: bool| Some(Refusal { reasons: vec![why.to_owned()], resolvable });
        for spread in self.spread.iter().filter(|spread| spread.hard) {
            let Some(value) = node.labels.get(&spread.key) else { return refuse(SPREAD_LABEL, false) };
            let here = spread.counts.get(value).copied().unwrap_or_default();
            if here + spread.own - spread.min > spread.max_skew {
                return refuse(SPREAD, true);
            }
        }
        let is_there = |places: &BTreeSet<Domain>| {
            node.labels.iter().any(|(key, value)| places.contains(&(key.clone(), value.clone())))
        };
        let near = |(key, places): &(String, BTreeSet<String>)| {
            node.labels.get(key).is_some_and(|value| places.contains(value))
        };
        if !self.together.iter().all(near) {
            return refuse(AFFINITY, false);
        }
        if is_there(&self.apart) {
            return refuse(ANTI_AFFINITY, true);
        }
        if is_there(&self.forbidden) {
            return refuse(EXISTING, true);
        }
        None
    }

    /// How good a node is, each from 0 to 100: for spreading, and for the company.
    pub(super) fn scores(&self, nodes: &[&NodeState]) -> Vec<(f64, f64)> {
        let crowd = |node: &NodeState| -> f64 {
            let soft = self.spread.iter().filter(|spread| !spread.hard);
            let here = |spread: &Spread| match node.labels.get(&spread.key) {
                Some(value) => spread.counts.get(value).copied().unwrap_or_default(),
                // What has no place in the topology comes last.
                None => spread.counts.values().sum::<i64>() + spread.max_skew,
            };
            soft.map(|spread| here(spread) as f64 / spread.max_skew.max(1) as f64).sum()
        };
        let company = |node: &NodeState| -> f64 {
            let here = node.labels.iter().filter_map(|(k, v)| self.preferred.get(&(k.clone(), v.clone())));
            here.sum::<i64>() as f64
        };
        let (crowds, companies): (Vec<f64>, Vec<f64>) = nodes.iter().map(|node| (crowd(node), company(node))).unzip();
        let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let share = |value: f64, all: &[f64], none: f64| {
            let (least, most) = (least(all), most(all));
            if most > least { (value - least) * 100.0 / (most - least) } else { none }
        };
        let pairs = crowds.iter().zip(&companies);
        pairs.map(|(crowd, company)| (100.0 - share(*crowd, &crowds, 0.0), share(*company, &companies, 0.0))).collect()
    }
}

fn spread(constraint: &TopologySpreadConstraint, spec: &PodSpec, about: &About, nodes: &[&NodeState]) -> Spread {
    let mut selector = constraint.label_selector.clone().unwrap_or_default();
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = about.labels.get(key) {
            selector.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
        }
    }
    let has_selector = constraint.label_selector.is_some();
    let selector = Selector::of(&selector).ok().filter(|_| has_selector);
    let selects = |labels: &Labels| selector.as_ref().is_some_and(|selector| selector.matches(labels));
    let honours = |policy: &Option<String>, default: bool| policy.as_deref().map_or(default, |p| p == "Honor");
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut counts = BTreeMap::new();
    for node in nodes {
        let Some(value) = node.labels.get(&constraint.topology_key) else { continue };
        if honours(&constraint.node_affinity_policy, true) && !matches_affinity(spec, node) {
            continue;
        }
        let hard = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
        let tainted = node.taints.iter().any(|t| hard(&t.effect) && !tolerates_all(tolerations, t));
        if honours(&constraint.node_taints_policy, false) && tainted {
            continue;
        }
        let here = node.pods.values().map(|load| &load.about);
        let here = here.filter(|pod| pod.namespace == about.namespace && !pod.is_ending && selects(&pod.labels));
        *counts.entry(value.clone()).or_insert(0) += i64::try_from(here.count()).unwrap_or(i64::MAX);
    }
    let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
    let few = constraint.min_domains.is_some_and(|wanted| domains < i64::from(wanted));
    Spread {
        key: constraint.topology_key.clone(),
        hard: constraint.when_unsatisfiable == "DoNotSchedule",
        max_skew: i64::from(constraint.max_skew),
        min: if few { 0 } else { counts.values().copied().min().unwrap_or_default() },
        own: i64::from(selects(&about.labels)),
        counts,
    }
}

/// A term of affinity, of a pod.
struct Term<'a> {
    key: &'a str,
    selector: Option<Selector>,
    namespaces: BTreeSet<&'a str>,
    of_namespaces: Option<Selector>,
}

impl<'a> Term<'a> {
    fn of(term: &'a PodAffinityTerm, about: &'a About) -> Self {
        let mut namespaces: BTreeSet<&str> = term.namespaces.iter().flatten().map(String::as_str).collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(&about.namespace);
        }
        Self {
            key: &term.topology_key,
            selector: term.label_selector.as_ref().and_then(|selector| Selector::of(selector).ok()),
            namespaces,
            of_namespaces: term.namespace_selector.as_ref().and_then(|selector| Selector::of(selector).ok()),
        }
    }

    fn matches(&self, other: &About, namespaces: &Namespaces) -> bool {
        let none = Labels::default();
        let labels = || namespaces.get(&other.namespace).unwrap_or(&none);
        let is_there = self.namespaces.contains(other.namespace.as_str())
            || self.of_namespaces.as_ref().is_some_and(|selector| selector.matches(labels()));
        is_there && self.selector.as_ref().is_some_and(|selector| selector.matches(&other.labels))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::super::filters::tests::node;
    use super::super::nodes::Load;
    use super::*;

    fn pod(name: &str, app: &str, spec: Value) -> Pod {
        let mut whole = json!({"containers": [{"name": "c"}]});
        json_patch::merge(&mut whole, &spec);
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": app}}, "spec": whole}),
        )
        .unwrap()
    }

    /// Nodes a1, a2 in zone a and b1 in zone b, with pods of those apps.
    fn zones(pods: &[(&str, &str, Value)]) -> Vec<NodeState> {
        let mut nodes: Vec<NodeState> = [("a1", "a"), ("a2", "a"), ("b1", "b")]
            .map(|(name, zone)| node(name, json!({"metadata": {"labels": {"zone": zone}}})))
            .into();
        for (at, (place, app, spec)) in pods.iter().enumerate() {
            let load = Load::of(&pod(&at.to_string(), app, spec.clone()));
            nodes.iter_mut().find(|node| node.name == *place).unwrap().add(&at.to_string(), load);
        }
        nodes
    }

    #[track_caller]
    fn check(spec: Value, nodes: &[NodeState], expected: [&str; 3]) {
        let pod = pod("new", "web", spec);
        let all: Vec<&NodeState> = nodes.iter().collect();
        let around = Surroundings::of(pod.spec.as_ref().unwrap(), &Load::of(&pod).about, &all, &Namespaces::new());
        let told: Vec<String> =
            all.iter().map(|node| around.refusal(node).map(|r| r.reasons.concat()).unwrap_or_default()).collect();
        assert_eq!(told, expected);
    }

    fn web() -> Value {
        json!({"matchLabels": {"app": "web"}})
    }

    #[test]
    fn pods_spread_over_a_topology() {
        // C8.2
        let constraint = |skew: i64, more: Value| {
            let mut one = json!({"maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": web()});
            json_patch::merge(&mut one, &more);
            json!({"topologySpreadConstraints": [one]})
        };
        let nodes = zones(&[("a1", "web", json!({})), ("a2", "db", json!({}))]);
        check(constraint(1, json!({})), &nodes, [SPREAD, SPREAD, ""]);
        check(constraint(2, json!({})), &nodes, ["", "", ""]);
        check(constraint(1, json!({"topologyKey": "rack"})), &nodes, [SPREAD_LABEL; 3]);
        check(constraint(1, json!({"minDomains": 3})), &nodes, [SPREAD, SPREAD, ""]);
        check(constraint(1, json!({"whenUnsatisfiable": "ScheduleAnyway"})), &nodes, ["", "", ""]);
    }

    #[test]
    fn pods_stay_together_or_apart() {
        // C8.2
        let rule = |kind: &str, key: &str, labels: Value| {
            json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": key, "labelSelector": {"matchLabels": labels}}]}}})
        };
        let apart = rule("podAntiAffinity", "kubernetes.io/hostname", json!({"app": "web"}));
        let nodes = zones(&[("a1", "web", json!({})), ("a2", "db", json!({}))]);
        check(apart.clone(), &nodes, [ANTI_AFFINITY, "", ""]);
        check(rule("podAntiAffinity", "zone", json!({"app": "db"})), &nodes, [ANTI_AFFINITY, ANTI_AFFINITY, ""]);
        check(rule("podAffinity", "zone", json!({"app": "db"})), &nodes, ["", "", AFFINITY]);
        check(rule("podAffinity", "kubernetes.io/hostname", json!({"app": "db"})), &nodes, [AFFINITY, "", AFFINITY]);
        check(rule("podAffinity", "zone", json!({"app": "none"})), &nodes, [AFFINITY; 3]);
        // The first of its kind goes anywhere.
        check(rule("podAffinity", "zone", json!({"app": "web"})), &zones(&[]), ["", "", ""]);
        // Who came first may want to be alone, too.
        check(json!({}), &zones(&[("a1", "db", apart)]), [EXISTING, "", ""]);
        let elsewhere = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": web(), "namespaces": ["other"]}]}}});
        check(elsewhere, &nodes, ["", "", ""]);
    }

    #[test]
    fn wishes_about_others_make_points() {
        // C8.3
        let nodes = zones(&[("a1", "web", json!({})), ("b1", "db", json!({}))]);
        let all: Vec<&NodeState> = nodes.iter().collect();
        let scores = |spec: Value| {
            let pod = pod("new", "web", spec);
            Surroundings::of(pod.spec.as_ref().unwrap(), &Load::of(&pod).about, &all, &Namespaces::new()).scores(&all)
        };
        let wish = |kind: &str| {
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7,
                "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}}]}}})
        };
        assert_eq!(scores(wish("podAffinity")), [(100.0, 0.0), (100.0, 0.0), (100.0, 100.0)]);
        assert_eq!(scores(wish("podAntiAffinity")), [(100.0, 100.0), (100.0, 100.0), (100.0, 0.0)]);
        let soft = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": web()}]});
        assert_eq!(scores(soft), [(0.0, 0.0), (0.0, 0.0), (100.0, 0.0)]);
    }
}
