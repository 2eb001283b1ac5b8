use crate::Pool;

/// The tasks of products with several matrices, those of one behind those of another: one call of
/// the pool, and one wait for the last of its threads.
#[derive(Debug)]
pub(crate) struct Tasks(Vec<usize>);

impl Tasks {
    /// How many each of the matrices has.
    pub(crate) fn new(of: impl Iterator<Item = usize>) -> Self {
        Self(of.collect())
    }

    /// Calls `f(matrix, task)` for each of them.
    pub(crate) fn run(&self, pool: &Pool, f: &(dyn Fn(usize, usize) + Sync)) {
        pool.run(self.0.iter().sum(), &|task| {
            let (matrix, task) = self.find(task).expect("as many tasks as all have together");
            f(matrix, task);
        });
    }

    /// The matrix and task that a thread of the pool starts with; `None` where there are too few
    /// for it.
    pub(crate) fn first_of(&self, pool: &Pool, thread: usize) -> Option<(usize, usize)> {
        self.find(pool.first_of(thread, self.0.iter().sum()))
    }

    fn find(&self, mut task: usize) -> Option<(usize, usize)> {
        for (matrix, tasks) in self.0.iter().enumerate() {
            if task < *tasks {
                return Some((matrix, task));
            }
            task -= tasks;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn all_tasks_of_all_matrices_are_run_once() {
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            let tasks = Tasks::new([2, 0, 3, 1].into_iter());
            let run = Mutex::new(Vec::new());
            tasks.run(&pool, &|matrix, task| run.lock().unwrap().push((matrix, task)));
            let mut run = run.into_inner().unwrap();
            run.sort_unstable();
            assert_eq!(run, [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]);
        }
    }

    #[test]
    fn threads_start_where_the_pool_lets_them() {
        let pool = Pool::new(3);
        let tasks = Tasks::new([2, 4].into_iter());
        let firsts = [0, 1, 2].map(|thread| tasks.first_of(&pool, thread));
        assert_eq!(firsts, [Some((0, 0)), Some((1, 0)), Some((1, 2))]);
        let none = Tasks::new([0].into_iter());
        assert_eq!(none.first_of(&pool, 1), None);
    }
}
