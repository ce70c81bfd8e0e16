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
        for (pod, expected) in
            [("Always", [true; 3]), ("OnFailure", [false, true, true]), ("Never", [false; 3])]
        {
            assert_eq!(seen(pod, &container(None, &[])), expected, "{pod}");
            assert_eq!(seen("Always", &container(Some(pod), &[])), expected, "container: {pod}");
            assert_eq!(seen("Never", &container(Some(pod), &[])), expected, "container: {pod}");
        }
        assert_eq!(seen("Always", &container(Some("Never"), &[("In", &[42])])), [false, false, true]);
        assert_eq!(seen("Never", &container(Some("Never"), &[("NotIn", &[0, 42])])), [false, true, false]);
        assert_eq!(seen("Never", &container(Some("OnFailure"), &[("In", &[0])])), [true; 3]);
        assert_eq!(seen("Never", &container(None, &[("In", &[42])])), [false; 3], "rules need a policy beside them");
    }
}
