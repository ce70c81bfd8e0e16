//! Whether a container runs again after it has ended: by its own rules, else by its own policy, else by the pod's (A3.8, A3.10).

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

/// Whether a container runs again that ended with this code.
pub(super) fn restarts_after(of_pod: &str, container: &Container, exit_code: i32) -> bool {
    let rules = container.restart_policy_rules.iter().flatten();
    if container.restart_policy.is_some() && rules.into_iter().any(|rule| matches(rule, exit_code)) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or(of_pod) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether everything in the pod starts over when this container has ended with this code (A3.12).
pub(super) fn restarts_all_after(container: &Container, exit_code: i32) -> bool {
    let first = container.restart_policy_rules.iter().flatten().find(|rule| matches(rule, exit_code));
    container.restart_policy.is_some() && first.is_some_and(|rule| rule.action == RESTART_ALL)
}

/// Whether a rule of the container can make everything in the pod start over.
pub(super) fn may_restart_all(container: &Container) -> bool {
    container.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL)
}

const RESTART_ALL: &str = "RestartAllContainers";

/// Every action that a rule can name restarts the container.
fn matches(rule: &ContainerRestartRule, exit_code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else { return false };
    let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ContainerRestartRuleOnExitCodes;

    use super::*;

    fn container(policy: Option<&str>, rules: &[(&str, &[i32])]) -> Container {
        let rules = rules.iter().map(|(operator, values)| ContainerRestartRule {
            action: "Restart".into(),
            exit_codes: Some(ContainerRestartRuleOnExitCodes {
                operator: (*operator).into(),
                values: Some(values.to_vec()),
            }),
        });
        Container {
            restart_policy: policy.map(str::to_owned),
            restart_policy_rules: Some(rules.collect()),
            ..Container::default()
        }
    }

    #[test]
    fn rules_go_before_policies_and_the_container_before_the_pod() {
        // A3.8, A3.10
        let seen = |pod: &str, c: &Container| [0, 1, 42].map(|code| restarts_after(pod, c, code));
        for (pod, expected) in [("Always", [true; 3]), ("OnFailure", [false, true, true]), ("Never", [false; 3])] {
            assert_eq!(seen(pod, &container(None, &[])), expected, "{pod}");
            assert_eq!(seen("Always", &container(Some(pod), &[])), expected, "container: {pod}");
            assert_eq!(seen("Never", &container(Some(pod), &[])), expected, "container: {pod}");
        }
        assert_eq!(seen("Always", &container(Some("Never"), &[("In", &[42])])), [false, false, true]);
        assert_eq!(seen("Never", &container(Some("Never"), &[("NotIn", &[0, 42])])), [false, true, false]);
        assert_eq!(seen("Never", &container(Some("OnFailure"), &[("In", &[0])])), [true; 3]);
        assert_eq!(seen("Never", &container(None, &[("In", &[42])])), [false; 3], "rules need a policy beside them");
    }

    #[test]
    fn the_first_rule_that_fits_decides_whether_all_restart() {
        // A3.12
        let mut c = container(Some("Never"), &[("In", &[42]), ("NotIn", &[0])]);
        assert!(!may_restart_all(&c) && !restarts_all_after(&c, 1));
        c.restart_policy_rules.as_mut().unwrap()[1].action = "RestartAllContainers".into();
        assert!(may_restart_all(&c));
        assert_eq!([0, 1, 42].map(|code| restarts_all_after(&c, code)), [false, true, false]);
    }
}
