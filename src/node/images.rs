//! The images that the Node lists (A16.7). Pure.

use k8s_openapi::api::core::v1::ContainerImage;

use crate::runtime::cri::Image;

/// Names that one image shows at most.
const NAMES: usize = 5;

/// Largest first, digests before tags; `most` of them, all when it is negative.
pub(super) fn listed(images: Vec<Image>, most: i32) -> Vec<ContainerImage> {
    let mut images: Vec<ContainerImage> = images
        .into_iter()
        .map(|image| {
            let names = image.repo_digests.into_iter().chain(image.repo_tags).take(NAMES).collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    if let Ok(most) = usize::try_from(most) {
        images.truncate(most);
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64, tags: usize) -> Image {
        Image {
            size,
            repo_tags: (0..tags).map(|n| format!("i:{n}")).collect(),
            repo_digests: vec!["i@sha256:1".into()],
            ..Image::default()
        }
    }

    #[test]
    fn the_largest_come_first_and_digests_before_tags() {
        // A16.7
        let images = vec![image(1, 1), image(9, 9), image(5, 1)];
        let sizes = |most| listed(images.clone(), most).iter().filter_map(|i| i.size_bytes).collect::<Vec<_>>();
        assert_eq!(sizes(2), [9, 5]);
        assert_eq!(sizes(-1), [9, 5, 1]);
        let names = listed(images.clone(), 1)[0].names.clone().expect("names");
        assert_eq!((names.len(), names[0].as_str()), (5, "i@sha256:1"));
    }
}
